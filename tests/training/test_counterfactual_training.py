"""Training counterfactual models: what each term of the loss says, what missing labels do, and what the terms buy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.causal.labels import embed_all, unembed_all
from gendiff.data.pendulum import Pendulum, pendulum_graph, shadow
from gendiff.models.causal_encoder import CausalEncoderOutput
from gendiff.models.causal_mechanisms import CausalMechanisms
from gendiff.models.latent_projection import LatentProjection
from gendiff.pipelines.counterfactual import CounterfactualPipeline
from gendiff.training.counterfactual import build, finish, objective, preview
from gendiff.training.methods import get_method

TINY = {
    "encoder": {"block_out_channels": [8, 16], "norm_num_groups": 4, "style_dim": 3},
    "mechanisms": {"hidden_dim": 8},
    "projection": {"hidden_dim": 16, "p_uncond": 0.3, "p_block": 0.3},
    "unet": {"patch_size": 2, "block_out_channels": [8, 16], "norm_num_groups": 4},
    "scheduler": {"num_train_timesteps": 100},
}
TERMS = {"diffusion", "noise_kl", "style_kl", "align", "mechanism"}
MISSING = float("nan")


def dataset(graph: CausalGraph, count: int = 8, channels: int = 1, size: int = 16) -> Any:
    """Noise for images, and labels that have nothing to do with them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.rand(count, len(graph.names), generator=generator) * 60
    for i, variable in enumerate(graph.variables):
        if variable.kind == "categorical":
            labels[:, i] = torch.randint(variable.dim, (count,), generator=generator).float()
    return SimpleNamespace(graph=graph, images=images, labels=labels)


def batch_of(data: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"image": data.images.to(dtype) / 127.5 - 1, "labels": data.labels.clone()}


def terms(pipe: CounterfactualPipeline, batch: Mapping[str, Tensor], seed: int = 2, **kwargs: Any) -> dict[str, Tensor]:
    return objective(pipe.components, batch, torch.Generator().manual_seed(seed), **kwargs)


def parameters(pipe: CounterfactualPipeline) -> dict[str, nn.Parameter]:
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.named_parameters()}


def gradients(pipe: CounterfactualPipeline, loss: Tensor) -> dict[str, Tensor]:
    """By name; zero for parameters that the loss does not touch."""
    named = parameters(pipe)
    grads = torch.autograd.grad(
        loss, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, grads, strict=True))


@pytest.fixture
def data(tiny_graph: Callable[[], CausalGraph]) -> Any:
    return dataset(tiny_graph())


@pytest.fixture
def pipe(data: Any) -> CounterfactualPipeline:
    torch.manual_seed(0)
    return build(TINY, data)


# Terms


def test_terms_are_scalars_with_the_promised_names(pipe, data):
    result = terms(pipe, batch_of(data))
    assert set(result) == TERMS | {"align_error"} | {f"slope/{name}" for name in data.graph.names if name != "digit"}
    assert all(value.ndim == 0 and value.isfinite() for value in result.values())
    assert not any(result[name].requires_grad for name in result if name not in TERMS)


def test_terms_depend_on_the_generator_alone(pipe, data):
    before = torch.get_rng_state()
    first, second, other = terms(pipe, batch_of(data)), terms(pipe, batch_of(data)), terms(pipe, batch_of(data), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["diffusion"] != other["diffusion"]
    assert torch.equal(first["align"], other["align"]), "labels are compared with means, not with draws"


def test_kl_is_that_of_gaussians(pipe, data):
    batch = batch_of(data)
    posterior = pipe.encoder(batch["image"])
    result = terms(pipe, batch)
    unit = torch.distributions.Normal(0.0, 1.0)
    for name, mean, logvar in (
        ("noise_kl", posterior.mean, posterior.logvar),
        ("style_kl", posterior.style_mean, posterior.style_logvar),
    ):
        normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
        torch.testing.assert_close(result[name], torch.distributions.kl_divergence(normal, unit).mean())


def test_alignment_is_the_squared_distance_to_the_labels(pipe, data):
    batch = batch_of(data)
    factors = pipe.mechanisms(pipe.encoder(batch["image"]).mean)
    distance = factors - embed_all(data.graph, batch["labels"])
    result = terms(pipe, batch)
    torch.testing.assert_close(result["align"], distance.square().mean())
    torch.testing.assert_close(result["align_error"], distance.abs().mean())


@pytest.mark.parametrize("mechanism", ["additive", "affine"])
def test_the_mechanism_term_compares_labels_with_labels(data, mechanism: str):
    torch.manual_seed(0)
    pipe = build({**TINY, "mechanisms": {"hidden_dim": 8, "mechanism": mechanism}}, data)
    graph, targets = data.graph, embed_all(data.graph, data.labels)
    expected = torch.zeros(())
    for child, parents in (("intensity", ("thickness", "slant")), ("contrast", ("intensity",))):
        inputs = torch.cat([targets[:, graph.slices[parent]] for parent in parents], dim=1)
        prediction = pipe.mechanisms.functions[child](inputs)[:, :2]
        expected = expected + (prediction - targets[:, graph.slices[child]]).square().mean()
    loss = terms(pipe, batch_of(data))["mechanism"]
    torch.testing.assert_close(loss, expected)
    touched = {name.split(".")[0] for name, grad in gradients(pipe, loss).items() if grad.any()}
    assert touched == {"mechanisms"}, "no image is involved"


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_a_network_that_knows_the_image_has_no_diffusion_loss(pipe, data, prediction_type: Any):
    scheduler = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    batch = batch_of(data)

    def oracle(noisy: Tensor, timesteps: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert len(timesteps.unique()) > 1, "each sample has its own timestep"
        alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noise = (noisy - signal * batch["image"]) / sigma
        velocity = signal * noise - sigma * batch["image"]
        return ({"v_prediction": velocity, "epsilon": noise, "sample": batch["image"]}[prediction_type],)

    models = {**pipe.components, "unet": oracle, "scheduler": scheduler}
    assert objective(models, batch, torch.Generator().manual_seed(2))["diffusion"] <= 1e-8


def test_slopes_are_regression_slopes(pipe, data):
    batch = batch_of(data)
    read = unembed_all(data.graph, pipe.mechanisms(pipe.encoder(batch["image"]).mean))
    result = terms(pipe, batch)
    for i, name in enumerate(data.graph.names[:4]):
        covariance = torch.cov(torch.stack([data.labels[:, i], read[name]]))
        torch.testing.assert_close(result[f"slope/{name}"], covariance[0, 1] / covariance[0, 0], rtol=1e-3, atol=1e-4)


# Missing labels


def test_without_any_label_only_the_labelled_terms_vanish(pipe, data):
    data.labels.fill_(MISSING)
    result = terms(pipe, batch_of(data))
    assert all(value.isfinite() for value in result.values())
    for name in ("align", "mechanism"):
        assert result[name] == 0
        assert all((grad == 0).all() for grad in gradients(pipe, result[name]).values())
    grads = gradients(pipe, result["diffusion"] + result["noise_kl"])
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for name, grad in grads.items() if name.startswith("encoder"))


def test_unlabelled_samples_leave_the_labelled_terms_alone(pipe, data):
    batch = batch_of(data)
    half = {name: value[:4] for name, value in batch.items()}
    batch["labels"][4:] = MISSING
    few, many = terms(pipe, half), terms(pipe, batch)
    for name in ("align", "mechanism", "align_error"):
        torch.testing.assert_close(many[name], few[name])
    for name in ("align", "mechanism"):
        for ours, theirs in zip(gradients(pipe, many[name]).values(), gradients(pipe, few[name]).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_mechanism_learns_where_the_child_and_all_its_parents_are_labelled(pipe, data):
    complete = terms(pipe, batch_of(data))["mechanism"]
    graph = data.graph
    data.labels[:4, graph.index("slant")] = MISSING
    data.labels[4:6, graph.index("intensity")] = MISSING
    result = terms(pipe, batch_of(data))
    targets = embed_all(graph, data.labels).nan_to_num(0.0)
    functions, slices = pipe.mechanisms.functions, graph.slices
    intensity = functions["intensity"](targets[6:, :4]) - targets[6:, slices["intensity"]]
    rows = [0, 1, 2, 3, 6, 7]
    contrast = functions["contrast"](targets[rows, slices["intensity"]]) - targets[rows, slices["contrast"]]
    expected = intensity.square().mean() + contrast.square().mean()
    torch.testing.assert_close(result["mechanism"], expected)
    assert result["mechanism"] != complete
    known = ~embed_all(graph, data.labels).isnan()
    factors = pipe.mechanisms(pipe.encoder(batch_of(data)["image"]).mean)
    torch.testing.assert_close(result["align"], (factors - targets)[known].square().mean())
    assert all(grad.isfinite().all() for grad in gradients(pipe, result["align"] + result["mechanism"]).values())


def test_a_mechanism_does_not_learn_from_values_that_an_experiment_set(pipe, data):
    graph, batch = data.graph, batch_of(data)
    plain = terms(pipe, batch)
    batch["intervened"] = torch.zeros(8, 5, dtype=torch.bool)
    assert torch.equal(terms(pipe, batch)["mechanism"], plain["mechanism"])
    batch["intervened"][:3, graph.index("intensity")] = True
    result = terms(pipe, batch)
    targets, functions, slices = embed_all(graph, data.labels), pipe.mechanisms.functions, graph.slices
    intensity = functions["intensity"](targets[3:, :4]) - targets[3:, slices["intensity"]]
    # what was set is still the cause of what follows
    contrast = functions["contrast"](targets[:, slices["intensity"]]) - targets[:, slices["contrast"]]
    torch.testing.assert_close(result["mechanism"], intensity.square().mean() + contrast.square().mean())
    assert result["mechanism"] != plain["mechanism"] and torch.equal(result["align"], plain["align"])


def test_unlabelled_samples_may_be_trained_without_condition(pipe, data):
    data.labels.fill_(MISSING)
    data.labels[0, 0] = 3.0
    batch = batch_of(data)
    for rows, reaches in ((slice(1, None), False), (slice(0, 1), True)):
        part = {name: value[rows] for name, value in batch.items()}
        pipe.projection.register_to_config(p_uncond=0.0, p_block=0.0)
        loss = terms(pipe, part, drop_unlabelled_condition=True)["diffusion"]
        grads = gradients(pipe, loss)
        assert any(grad.any() for name, grad in grads.items() if name.startswith("encoder")) == reaches
    assert any(
        grad.any() for name, grad in gradients(pipe, terms(pipe, batch)["diffusion"]).items() if "encoder" in name
    )


# What the terms buy


class FreeNoise(nn.Module):
    """In the place of an encoder: a free mean for each sample, so that nothing but the loss decides."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(count, dim))

    def forward(self, image: Tensor) -> CausalEncoderOutput:
        style = self.mean[:, :0]
        return CausalEncoderOutput(self.mean, torch.full_like(self.mean, -10.0), style, style)


def fit_pendulum(steps: int, mechanism: float, noise_kl: float = 1e-3) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Fit 512 label vectors, without images. The last terms, and the mean error under do(angle) in units of scale."""
    graph, generator = pendulum_graph(), torch.Generator().manual_seed(0)
    angle = -40 + 83 * torch.rand(512, generator=generator)
    light = 60 + 87 * torch.rand(512, generator=generator)
    labels = torch.stack([angle, light, *shadow(angle, light)], dim=1).float()
    torch.manual_seed(0)
    models = {
        "encoder": FreeNoise(512, graph.dim),
        "mechanisms": CausalMechanisms(graph.to_dict(), hidden_dim=96),
        "projection": LatentProjection([4] * 4, 4, hidden_dim=4),
        "unet": lambda noisy, timesteps, class_labels, return_dict: (torch.zeros_like(noisy),),
        "scheduler": DDIMScheduler(prediction_type="v_prediction"),
    }
    batch = {"image": torch.zeros(512, 1, 1, 1), "labels": labels}
    trained = [*models["encoder"].parameters(), *models["mechanisms"].parameters()]
    optimizer = torch.optim.Adam(trained, lr=3e-2, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    result: dict[str, Tensor] = {}
    for _ in range(steps):
        result = objective(models, batch, generator)
        loss = result["align"] + mechanism * result["mechanism"] + noise_kl * result["noise_kl"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        u = models["encoder"].mean
        asked = -40 + 83 * torch.rand(512, generator=generator)
        read = unembed_all(graph, models["mechanisms"].intervene(u, models["mechanisms"](u), {"angle": asked}))
    truth = dict(zip(("shadow_len", "shadow_pos"), shadow(asked, light), strict=True))
    errors = {name: ((read[name] - truth[name]).abs().mean() / graph[name].scale).item() for name in truth}
    return result, errors


def test_the_mechanism_term_carries_an_intervention_to_the_shadow():
    result, errors = fit_pendulum(600, mechanism=1.0)
    assert errors["shadow_len"] < 0.05 and errors["shadow_pos"] < 0.05
    assert result["slope/angle"].item() == pytest.approx(1.0, abs=0.01)
    assert result["slope/light"].item() == pytest.approx(1.0, abs=0.01)


def test_without_it_the_labels_are_met_and_the_intervention_is_not():
    result, errors = fit_pendulum(200, mechanism=0.0)
    assert result["align_error"] < 0.02
    assert errors["shadow_len"] > 0.10


def test_a_heavy_noise_term_shrinks_the_factors():
    # a root minimises u^2 / 2 + (u - label)^2, so it stops at two thirds of its label
    result, _ = fit_pendulum(200, mechanism=0.0, noise_kl=1.0)
    assert result["slope/angle"].item() == pytest.approx(2 / 3, abs=0.02)
    assert result["slope/light"].item() == pytest.approx(2 / 3, abs=0.02)


# Whole models


@pytest.mark.parametrize("mechanism", ["additive", "affine", "legacy_sum"])
def test_two_steps_reach_every_part(data, mechanism: str):
    if mechanism == "legacy_sum":
        variables = [Variable(name, loc=30.0, scale=30.0, dim=2) for name in data.graph.names]
        data = dataset(CausalGraph(variables, data.graph.edges))
    torch.manual_seed(0)
    pipe = build({**TINY, "mechanisms": {"hidden_dim": 8, "mechanism": mechanism}}, data)
    optimizer = torch.optim.AdamW(parameters(pipe).values(), lr=1e-3)
    for step in range(2):
        result = terms(pipe, batch_of(data), seed=step)
        assert all(value.isfinite() for value in result.values())
        optimizer.zero_grad()
        sum((result[name] for name in TERMS), torch.zeros(())).backward()
        optimizer.step()
    # the published mechanism multiplies these by the sum over no parents
    idle = {f"mechanisms.functions.{name}.0.weight" for name in data.graph.roots if mechanism == "legacy_sum"}
    for name, parameter in parameters(pipe).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() != (name in idle), name
    assert all(parameter.isfinite().all() for parameter in parameters(pipe).values())


def test_the_default_sizes_fit_the_pendulum():
    data = Pendulum("train", size=32, num_images=4)
    torch.manual_seed(0)
    pipe = build({"encoder": {"block_out_channels": [16, 32, 64]}, "unet": {"attention_levels": [2]}}, data)
    assert pipe.graph == data.graph and pipe.sample_shape == (3, 32, 32)
    batch = {"image": torch.stack([data[i]["image"] for i in range(4)]), "labels": data.labels}
    result = terms(pipe, batch)
    assert all(value.isfinite() for value in result.values())
    assert result["style_kl"] == 0, "there is no style"
    result["diffusion"].backward()
    assert all(parameter.grad is not None for parameter in pipe.unet.parameters())


def test_build_takes_sizes_from_the_data_and_the_rest_from_the_recipe(tiny_graph):
    data = dataset(tiny_graph(), channels=3, size=28)
    pipe = build({**TINY, "unet": {"patch_size": 1, "block_out_channels": [12, 16], "norm_num_groups": 4}}, data)
    assert pipe.sample_shape == (3, 28, 28)
    assert pipe.encoder.config["style_dim"] == pipe.projection.config["style_dim"] == 3
    assert pipe.projection.config["embed_dim"] == 48 and pipe.projection.config["p_uncond"] == 0.3
    assert pipe.mechanisms.config["hidden_dim"] == 8
    assert pipe.scheduler.config["num_train_timesteps"] == 100
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"


def test_build_refuses_what_it_does_not_know(data):
    with pytest.raises(ValueError, match="decoder"):
        build({"decoder": {}}, data)
    with pytest.raises(ValueError, match=r"models\.unet.*patch"):
        build({"unet": {"patch": 2}}, data)
    with pytest.raises(ValueError, match="multiple of"):
        build({"unet": {"patch_size": 3}}, data)
    with pytest.raises(ValueError, match="timestep_spacing"):
        build({"scheduler": {"timestep_spacing": "linspace"}}, data)


def test_a_variable_without_any_label_is_refused(data):
    data.labels[:-1, 2] = MISSING
    build(TINY, data)
    data.labels[:, 2] = MISSING
    data.labels[:, 4] = MISSING
    with pytest.raises(ValueError, match="no label at all for intensity, digit"):
        build(TINY, data)


def test_finish_stores_the_noise_of_the_data(pipe, data):
    finish(pipe, data)
    with torch.no_grad():
        u = pipe.encoder(batch_of(data)["image"]).mean
    torch.testing.assert_close(pipe.mechanisms.noise_mean, u.mean(dim=0))
    place = data.graph.slices["digit"]
    torch.testing.assert_close(pipe.mechanisms.noise_cov[place, place], torch.cov(u[:, place].T))


def test_the_preview_has_a_row_for_each_variable(pipe, data):
    pipe.set_progress_bar_config(disable=True)
    picture = preview(pipe, data, torch.Generator().manual_seed(1), columns=3)
    assert picture.shape == (1, 6 * 16, 3 * 16)
    assert picture.min() >= 0 and picture.max() <= 1
    first = torch.cat(list(data.images[:3].float() / 255), dim=2)
    assert torch.equal(picture[:, :16], first)
    assert torch.equal(picture, preview(pipe, data, torch.Generator().manual_seed(1), columns=3))
    assert not torch.equal(picture, preview(pipe, data, torch.Generator().manual_seed(2), columns=3))


def test_the_method_is_registered():
    method = get_method("counterfactual")
    assert (method.build, method.objective, method.finish, method.preview) == (build, objective, finish, preview)
