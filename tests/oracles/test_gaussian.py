"""The Gaussian oracle against definitions, and whole samplers against the Gaussian oracle."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from gendiff.oracles.gaussian import Gaussian, GaussianMixture, exact_predictor
from gendiff.samplers.loop import Step, sample
from gendiff.samplers.noise_levels import noise_level

# diffusers hands torch tensors to numpy functions, which numpy 2 comments on.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

LEVELS = [(1.0, 0.3), (0.6, 0.8), (0.1, 0.99), (0.4, 0.6)]
# A fine training grid, close to continuous time. DDIM needs step counts that divide it: it looks for the next node
# one integer stride further, wherever `timesteps` really go.
GRID = 10_240
BETAS = {"num_train_timesteps": GRID, "beta_start": 0.1 / GRID, "beta_end": 20 / GRID}
DDIM = {**BETAS, "clip_sample": False, "timestep_spacing": "trailing"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def make_gaussian(shape=(3,), seed=1):
    size = math.prod(shape)
    factor = randn(size, size, seed=seed) / math.sqrt(size)
    return Gaussian(randn(*shape, seed=seed + 1), factor @ factor.T + 0.05 * torch.eye(size, dtype=torch.float64))


def make_mixture():
    return GaussianMixture([make_gaussian(seed=1), make_gaussian(seed=5), make_gaussian(seed=9)], [1, 2, 5])


def levels(scheduler):
    """Where a walk starts and ends, as pairs (alpha, sigma)."""
    start = noise_level(scheduler, Step(0, len(scheduler.timesteps), scheduler.timesteps[0]))
    final_type = scheduler.config.get("final_sigmas_type", "zero")
    signal = float(scheduler.alphas_cumprod[0]) if final_type == "sigma_min" else 1.0
    return start, (math.sqrt(signal), math.sqrt(1 - signal))


def walk(data, scheduler, x):
    """Sample from `x` (in the network's scaling) and return what came out beside the exact solution."""
    start, end = levels(scheduler)
    # Some schedulers hold x / alpha and undo it in scale_model_input; they also start from larger noise.
    state = x / start[0] if getattr(scheduler, "init_noise_sigma", 1.0) > 1 else x
    return sample(exact_predictor(data, scheduler), scheduler, state, progress=False), data.transport(x, start, end)


def ddim(steps, **kwargs):
    scheduler = DDIMScheduler(**DDIM, **kwargs)
    scheduler.set_timesteps(steps)
    return scheduler


def dpm_solver(steps, **kwargs):
    # Order 2 holds in log-SNR, so its steps must be even there and must not end at infinity. The list of sigmas
    # names the last one twice: `steps + 1` calls take `steps` steps.
    scheduler = DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="sigma_min", use_lu_lambdas=True, **kwargs)
    scheduler.set_timesteps(steps + 1)
    return scheduler


def flow_euler(steps):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    return scheduler


def order(errors):
    """Measured order of convergence from errors at doubled step counts: the slope between the last two."""
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(3,), (2, 1, 4)])
def test_posterior_is_gaussian_conditioning(level, shape):
    (alpha, sigma), data = level, make_gaussian(shape)
    x = randn(5, *shape, seed=7)
    identity = torch.eye(math.prod(shape), dtype=x.dtype)
    gain = alpha * data.covariance @ torch.linalg.inv(alpha**2 * data.covariance + sigma**2 * identity)
    expected = data.mean + ((x - alpha * data.mean).flatten(1) @ gain.T).unflatten(1, shape)
    clean, noise = data.posterior(x, level)
    torch.testing.assert_close(clean, expected)
    torch.testing.assert_close(alpha * clean + sigma * noise, x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [make_gaussian, make_mixture])
def test_expected_noise_is_the_score(make, level):
    """Tweedie: the gradient of the log density is -E[noise | x] / sigma."""
    data, x = make(), randn(5, 3, seed=7).requires_grad_()
    (score,) = torch.autograd.grad(data.log_prob(x, level).sum(), x)
    clean, noise = data.posterior(x, level)
    torch.testing.assert_close(-noise / level[1], score)
    torch.testing.assert_close(level[0] * clean + level[1] * noise, x)


def test_densities_match_torch():
    data, mixture, x = make_gaussian(), make_mixture(), randn(5, 3)
    normals = [torch.distributions.MultivariateNormal(g.mean, g.covariance) for g in mixture.components]
    torch.testing.assert_close(data.log_prob(x), normals[0].log_prob(x))
    weighted = sum(w * n.log_prob(x).exp() for w, n in zip(mixture.weights, normals, strict=True))
    torch.testing.assert_close(mixture.log_prob(x), torch.as_tensor(weighted).log())


def test_ends_of_the_walk_are_stable():
    data = make_gaussian()
    x = randn(4, 3)
    clean, noise = data.posterior(x, (1.0, 0.0))
    torch.testing.assert_close(clean, x)
    torch.testing.assert_close(noise, torch.zeros_like(x))
    clean, noise = data.posterior(x, (0.0, 1.0))
    torch.testing.assert_close(clean, data.mean.expand(4, 3))
    torch.testing.assert_close(noise, x)


def test_samples_have_the_right_moments():
    draws, count = make_gaussian((2, 1, 2)).sample(100_000, rng()), 100_000
    data = make_gaussian((2, 1, 2))
    spread = data.covariance.diagonal().sqrt()
    assert draws.shape == (count, 2, 1, 2)
    assert ((draws.mean(0) - data.mean).flatten().abs() < 5 * spread / math.sqrt(count)).all()
    bound = 5 * math.sqrt(2 / count) * spread[:, None] * spread
    assert ((draws.flatten(1).T.cov() - data.covariance).abs() < bound).all()


def test_mixture_samples_have_the_right_mean():
    mixture, count = make_mixture(), 100_000
    draws = mixture.sample(count, rng())
    mean = sum(w * g.mean for w, g in zip(mixture.weights, mixture.components, strict=True))
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / math.sqrt(count)).all()


def test_transport_solves_the_probability_flow():
    """Along x_t = (1 - t) data + t noise the flow's velocity is E[noise - data | x]."""
    data, x, t, dt = make_gaussian(), randn(5, 3), 0.6, 1e-5
    ahead, behind = (data.transport(x, (1 - t, t), (1 - t - d, t + d)) for d in (dt, -dt))
    clean, noise = data.posterior(x, (1 - t, t))
    torch.testing.assert_close((ahead - behind) / (2 * dt), noise - clean, rtol=1e-7, atol=1e-8)


def test_transport_carries_the_noise_to_the_data():
    data = make_gaussian()
    basis = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    images = data.transport(basis, (0.0, 1.0))
    matrix = (images[1:] - images[0]).T
    torch.testing.assert_close(images[0], data.mean)
    torch.testing.assert_close(matrix @ matrix.T, data.covariance)
    torch.testing.assert_close(data.transport(images, (1.0, 0.0), (0.0, 1.0)), basis)


@pytest.mark.parametrize("make, expected, tolerance", [(ddim, 1, 0.05), (dpm_solver, 2, 0.05), (flow_euler, 1, 0.05)])
def test_order_of_convergence_for_each_sample(make, expected, tolerance):
    data, x = make_gaussian(), randn(32, 3)
    errors = []
    for steps in (40, 80, 160):
        reached, exact = walk(data, make(steps), x)
        errors.append((reached - exact).square().mean().sqrt().item())
    assert order(errors) == pytest.approx(expected, abs=tolerance)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("make, expected, tolerance", [(ddim, 1, 0.05), (dpm_solver, 2, 0.05), (flow_euler, 1, 0.05)])
def test_mean_and_covariance_converge_with_the_same_order(make, expected, tolerance):
    """On Gaussian data a sampler is an affine map, so its mean and covariance are read off without drawing."""
    data = make_gaussian()
    basis = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    mean_errors, covariance_errors = [], []
    for steps in (40, 80, 160):
        scheduler = make(steps)
        (alpha, sigma), end = levels(scheduler)
        images, _ = walk(data, scheduler, basis)
        matrix = (images[1:] - images[0]).T
        before = alpha**2 * data.covariance + sigma**2 * torch.eye(3)
        after = end[0] ** 2 * data.covariance + end[1] ** 2 * torch.eye(3)
        mean_errors.append((images[0] + alpha * matrix @ data.mean - end[0] * data.mean).norm().item())
        covariance_errors.append((matrix @ before @ matrix.T - after).norm().item())
    assert order(covariance_errors) == pytest.approx(expected, abs=tolerance)
    assert covariance_errors[-1] < 0.05 * data.covariance.norm()
    # The noisy mean alpha * m lies on an exact straight path for every one of these solvers: it is hit at once, up
    # to the float32 arithmetic inside the schedulers.
    assert max(mean_errors) < 2e-5


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("make", [ddim, dpm_solver])
def test_parametrisations_agree(make, kind):
    data, x = make_gaussian(), randn(8, 3)
    expected, _ = walk(data, make(20), x)
    reached, _ = walk(data, make(20, prediction_type=kind), x)
    # The schedulers convert in float32, and epsilon at the first steps is divided by alpha = 0.007.
    torch.testing.assert_close(reached, expected, rtol=0, atol=1e-4)


FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
KARRAS = {"use_karras_sigmas": True}
TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    "solver, config",
    [
        (DEISMultistepScheduler, {**BETAS, **TRAILING}),
        (DPMSolverMultistepScheduler, {**BETAS, **KARRAS}),
        (DPMSolverMultistepScheduler, {**BETAS, **FLOW_SOLVER}),
        (DPMSolverSinglestepScheduler, {**BETAS, **KARRAS, "lower_order_final": True}),
        (EulerDiscreteScheduler, {**BETAS, **TRAILING}),
        (EulerDiscreteScheduler, {**BETAS, **TRAILING, "prediction_type": "v_prediction"}),
        (HeunDiscreteScheduler, KARRAS),
        (PNDMScheduler, {**BETAS, **TRAILING, "skip_prk_steps": True}),
        (UniPCMultistepScheduler, {**BETAS, **TRAILING}),
        (UniPCMultistepScheduler, {**BETAS, **FLOW_SOLVER}),
        (FlowMatchHeunDiscreteScheduler, {}),
    ],
)
def test_every_solver_approaches_the_exact_answer(solver, config):
    data, x, errors = make_gaussian(), randn(32, 3), []
    for steps in (40, 80):
        scheduler = solver(**config)
        scheduler.set_timesteps(steps)
        reached, exact = walk(data, scheduler, x)
        errors.append((reached - exact).square().mean().sqrt().item())
    # An error of 1e-3 may be the one of the last step, which some solvers always take at first order.
    assert errors[1] < 0.05 and errors[1] < max(0.6 * errors[0], 1e-3)


@pytest.mark.parametrize(
    "scheduler, kwargs",
    [(DDIMScheduler(**DDIM), {"eta": 1.0}), (DDPMScheduler(**BETAS, clip_sample=False), {})],
    ids=["DDIM", "DDPM"],
)
def test_random_sampling_reaches_the_distribution(scheduler, kwargs):
    """Stochastic samplers have no exact path; their statistics are compared instead."""
    data, count = make_gaussian(), 4000
    scheduler.set_timesteps(80)
    draws = sample(
        exact_predictor(data, scheduler), scheduler, randn(count, 3), generator=rng(3), progress=False, **kwargs
    )
    spread = data.covariance.diagonal().sqrt()
    # Five standard errors plus the first-order error of 80 steps.
    assert ((draws.mean(0) - data.mean).abs() < 5 * spread / math.sqrt(count) + 0.03 * spread).all()
    bound = (5 * math.sqrt(2 / count) + 0.06) * spread[:, None] * spread
    assert ((draws.T.cov() - data.covariance).abs() < bound).all()


def test_mixture_is_sampled_with_its_shares():
    centres = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    variance = torch.full((1, 1), 0.04, dtype=torch.float64)
    mixture = GaussianMixture([Gaussian(centre, variance) for centre in centres], [3, 1])
    scheduler, count = dpm_solver(60), 4000
    draws = sample(exact_predictor(mixture, scheduler), scheduler, randn(count, 1), progress=False)
    # Share 0.75 has a standard error of 0.007 here.
    assert (draws < 0).double().mean().item() == pytest.approx(0.75, abs=0.035)
    assert draws[draws < 0].std().item() == pytest.approx(0.2, rel=0.1)


def test_results_keep_the_dtype_of_the_input():
    data, scheduler = make_gaussian(), ddim(4)
    for dtype in (torch.float32, torch.float64):
        x = randn(2, 3).to(dtype)
        assert sample(exact_predictor(data, scheduler), scheduler, x, progress=False).dtype == dtype
        assert data.transport(x, (0.0, 1.0)).dtype == data.log_prob(x).dtype == dtype


def test_bad_input_is_named():
    zeros, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match=r"covariance must be \(2, 2\).*got \(3, 3\)"):
        Gaussian(zeros, torch.eye(3))
    with pytest.raises(ValueError, match="symmetric"):
        Gaussian(zeros, torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="positive definite"):
        Gaussian(zeros, torch.diag(torch.tensor([1.0, 0.0])))
    with pytest.raises(ValueError, match="one or more"):
        GaussianMixture([])
    with pytest.raises(ValueError, match="one shape"):
        GaussianMixture([Gaussian(zeros, eye), Gaussian(torch.zeros(3), torch.eye(3))])
    with pytest.raises(ValueError, match="2 positive numbers"):
        GaussianMixture([Gaussian(zeros, eye)] * 2, [1.0, -1.0])


def test_schedulers_without_an_exact_level_are_refused():
    interpolating = KDPM2DiscreteScheduler()
    interpolating.set_timesteps(4)
    step = Step(0, 4, interpolating.timesteps[0])
    with pytest.raises(ValueError, match="KDPM2DiscreteScheduler asks for predictions between"):
        noise_level(interpolating, step)
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        exact_predictor(make_gaussian(), HeunDiscreteScheduler(prediction_type="something"))
