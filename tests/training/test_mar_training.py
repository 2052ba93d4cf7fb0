"""Training MAR: what is drawn, what the losses say, and the whole way from pictures to new pictures."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_stages import Bars, whole_batch
from torch.nn.functional import mse_loss

import gendiff
from gendiff.errors import InvalidInputError
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.samplers.token_diffusion import signal_shares
from gendiff.training import trainer
from gendiff.training.mar import build, measure_patches, objective, preview
from gendiff.training.recipe import Recipe, load_recipe
from gendiff.training.token_draws import draw_share, draw_times, hide_as_many
from gendiff.training.token_loss import head_losses, noised

TRANSFORMER = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_buffer_rows": 2,
    "head_width": 32,
    "head_layers": 1,
}
MODELS = {"image_tokenizer": {"patch_size": 4}, "transformer": TRANSFORMER}
WEIGHTS = "final/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def recipe(steps: int = 30) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "bars",
            "task": "mar",
            "seed": 5,
            "models": MODELS,
            "objective": {"flip": True, "shift": 1},
            "losses": {"mse": 1.0, "bound": 1.0},
            "train": {
                "steps": steps,
                "batch_size": 8,
                "learning_rate": 4e-3,
                "ema_decay": 0,
                "threads": 1,
                "log_every": 10,
                "checkpoint_every": 15,
            },
        }
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer.train(recipe(), folder, dataset=Bars())
    return folder


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    return build(MODELS, Bars())


def test_the_loss_falls_and_the_pipeline_that_is_left_makes_pictures(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert 0.6 < log[0]["mse"] < 1.2 and log[-1]["mse"] < 0.75 * log[0]["mse"]
    pipe = gendiff.load_pipeline(str(trained / "final"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.class_names == list(Bars.classes)
    options = {"num_inference_steps": 3, "num_head_steps": 4, "output_type": "pt"}
    images = pipe([0, 1, 2], generator=generator(), **options).images
    assert images.shape == (3, 1, 16, 16) and torch.isfinite(images).all() and images.std() > 0.01


def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
    trainer.train(recipe(steps=15), tmp_path, dataset=Bars())
    trainer.train(recipe(), tmp_path, resume=True, dataset=Bars())
    assert (tmp_path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_the_preview_has_a_column_for_each_class(pipeline):
    assert preview(pipeline, Bars(), generator(), rows=1, columns=2).shape == (1, 16, 2 * 16)


def test_gradients_reach_every_weight_of_the_transformer_and_none_of_the_tokenizer(pipeline):
    for parameter in pipeline.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    # A seed that leaves some tokens visible.
    options: dict[str, Any] = {"label_dropout": 0.5, "least_hidden": 0.2, "hidden_std": 9.0}
    terms = objective(pipeline.components, whole_batch(), generator(3), **options)
    (terms["mse"] + terms["bound"]).backward()
    silent = [name for name, p in pipeline.transformer.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent
    assert all(not p.requires_grad and p.grad is None for p in pipeline.image_tokenizer.parameters())


def test_terms_are_the_losses_of_the_heads_forward_at_hidden_tokens_and_shared_work_changes_nothing(pipeline):
    model = pipeline.transformer
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch, draws = whole_batch(), generator(3)
    terms = objective(pipeline.components, batch, generator(3), label_dropout=0.0, repeats=2)
    tokens = pipeline.image_tokenizer.encode(batch["image"])
    hidden = hide_as_many(48, 16, draw_share(0.7, 0.25, draws), draws)
    torch.rand(48, generator=draws)  # the labels' draws
    count = int(hidden.sum())
    times = draw_times(count, 2, draws)
    noise = torch.randn(2 * count, 16, generator=draws).unflatten(0, (2, count))
    z = model(tokens, hidden, batch["label"]).sample[hidden]
    expected = []
    for row, noises in zip(times, noise, strict=True):
        said = model.head(noised(tokens[hidden], noises, row), row, z)
        expected.append([part.mean().item() for part in head_losses(said, noises, row)])
    for name, parts in zip(("mse", "bound"), zip(*expected, strict=True), strict=True):
        assert terms[name].item() == pytest.approx(sum(parts) / 2, rel=1e-4)


def test_hidden_shares_are_a_truncated_normal():
    source = generator()
    shares = torch.tensor([draw_share(0.7, 0.25, source) for _ in range(1000)])
    assert shares.min() >= 0.7 and shares.max() <= 1
    # Mean of a normal number truncated to the left half, from its formula.
    edge = -0.3 / 0.25
    mass = 0.5 - 0.5 * math.erfc(-edge / math.sqrt(2))
    mean = 1 + 0.25 * (math.exp(-(edge**2) / 2) - 1) / math.sqrt(2 * math.pi) / mass
    assert abs(shares.mean().item() - mean) < 4 * shares.std().item() / math.sqrt(1000)
    assert draw_share(1.0, 0.25, source) == 1.0


def test_every_image_hides_as_many_tokens_wherever_they_are():
    hidden = hide_as_many(2000, 10, 0.72, generator())
    assert (hidden.sum(dim=1) == 8).all()
    assert (hidden.float().mean(dim=0) - 0.8).abs().max() < 4 * math.sqrt(0.16 / 2000)
    assert hide_as_many(3, 10, 0.0, generator()).sum() == 3


def test_times_are_uniform_and_spread_over_the_repeats_of_a_token():
    times = draw_times(5000, 4, generator())
    assert times.shape == (4, 5000)
    assert all((row // 250 == part).all() for part, row in enumerate(times))
    assert set(times.flatten().tolist()) == set(range(1000))
    assert draw_times(4000, 3, generator()).max() == 999


def test_the_bound_is_the_divergence_of_the_described_step_from_the_true_one_in_bits():
    """From means and variances of both, in float64, as Nichol & Dhariwal 2021 write them."""
    tokens, noise = torch.randn(6, 3, generator=generator()), torch.randn(6, 3, generator=generator(1))
    output = torch.cat([noise, torch.zeros(6, 3)], dim=1) + 0.3 * torch.randn(6, 6, generator=generator(2))
    times = torch.tensor([1, 7, 300, 700, 998, 999])
    mse, bound = head_losses(output, noise, times)
    assert mse.tolist() == pytest.approx([mse_loss(o[:3], n).item() for o, n in zip(output, noise, strict=True)])
    kept, x = signal_shares(), noised(tokens, noise, times).double()
    for i, t in enumerate(times.tolist()):
        now, before = float(kept[t]), float(kept[t - 1])
        beta = 1 - now / before
        true_variance = beta * (1 - before) / (1 - now)
        share = (output[i, 3:].double() + 1) / 2
        said_variance = torch.exp(share * math.log(beta) + (1 - share) * math.log(true_variance))
        means = []
        for said in (noise[i].double(), output[i, :3].double()):
            clean = (x[i] - math.sqrt(1 - now) * said) / math.sqrt(now)
            means.append((math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x[i]) / (1 - now))
        true, said = (
            torch.distributions.Normal(mean, variance**0.5)
            for mean, variance in (
                (means[0], torch.full((3,), true_variance, dtype=torch.float64)),
                (means[1], said_variance),
            )
        )
        expected = torch.distributions.kl_divergence(true, said).mean() / math.log(2)
        assert bound[i].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


def test_the_bound_trains_the_variance_alone_and_the_error_the_noise_alone():
    noise, times = torch.randn(50, 3, generator=generator()), torch.arange(0, 1000, 20)
    output = torch.randn(50, 6, generator=generator(1)).requires_grad_()
    mse, bound = head_losses(output, noise, times)
    (gradient,) = torch.autograd.grad(mse.sum(), output, retain_graph=True)
    assert gradient[:, :3].all() and not gradient[:, 3:].any()
    (gradient,) = torch.autograd.grad(bound.sum(), output)
    assert not gradient[:, :3].any() and gradient[1:, 3:].all()
    assert bound[0] == 0 and not gradient[0].any(), "the variance of the last step is never used"


def test_the_bound_is_least_for_the_true_variance_of_a_step():
    """Standard normal tokens: a reverse step then has variance beta, the upper end of the range."""
    times = torch.full((100_000,), 2)  # where the ends of the range lie apart
    tokens, noise = (torch.randn(100_000, 1, generator=generator(seed)) for seed in (0, 1))
    x = noised(tokens, noise, times)
    best = math.sqrt(1 - float(signal_shares()[2])) * x
    bounds = [
        head_losses(torch.cat([best, torch.full_like(x, share)], dim=1), noise, times)[1].mean().item()
        for share in (-1.0, 0.7, 1.0, 1.3, 2.0)
    ]
    assert min(bounds) == bounds[2]


def test_patches_lose_nothing_and_have_unit_variance(pipeline):
    tokenizer, images = pipeline.image_tokenizer, whole_batch()["image"]
    tokens = tokenizer.encode(images)
    assert tokens.shape == (48, 16, 16) and tokenizer.grid == (4, 4) and tokenizer.token_channels == 16
    assert (tokenizer.decode(tokens) - images).abs().max() < 1e-5
    assert (
        tokens.mean(dim=(0, 1)).abs().max() < 1e-5
        and (tokens.flatten(0, 1).std(0, correction=0) - 1).abs().max() < 1e-4
    )
    extremes = tokenizer.encode(torch.stack([torch.full((1, 16, 16), value) for value in (-1.0, 1.0)]))
    assert extremes.abs().max().item() == pytest.approx(tokenizer.token_range, rel=1e-5)
    assert pipeline.transformer.head.token_range == tokenizer.token_range


def test_padded_patches_lose_nothing_either_and_a_constant_channel_keeps_its_scale():
    tokenizer = PixelPatchTokenizer(16, 1, 20, padding=2)
    measure_patches(tokenizer, Bars())
    assert tokenizer.grid == (1, 1) and tokenizer.scale[0] == 1 and tokenizer.mean[0] == -1
    images = whole_batch()["image"]
    assert (tokenizer.decode(tokenizer.encode(images)) - images).abs().max() < 1e-5
    colours = torch.rand(2, 3, 8, 8, generator=generator()) * 2 - 1
    tokenizer = PixelPatchTokenizer(8, 3, 4)
    tokens = tokenizer.encode(colours)
    assert torch.equal(tokens[:, 1].view(2, 3, 4, 4), colours[:, :, :4, 4:]), "row after row, channels first"
    assert torch.equal(tokenizer.decode(tokens), colours)


def test_a_trained_tokenizer_is_taken_from_its_folder_and_must_be_continuous(tmp_path, pipeline):
    pipeline.image_tokenizer.save_pretrained(tmp_path / "pixels")
    again = build({**MODELS, "image_tokenizer": {"path": str(tmp_path / "pixels")}}, Bars())
    assert torch.equal(again.image_tokenizer.scale, pipeline.image_tokenizer.scale)
    assert again.transformer.head.token_range == pipeline.transformer.head.token_range
    PatchVQTokenizer(16, 1, 4, 8).save_pretrained(tmp_path / "codes")
    with pytest.raises(ValueError, match=r"models\.image_tokenizer must have continuous tokens"):
        build({**MODELS, "image_tokenizer": {"path": str(tmp_path / "codes")}}, Bars())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": -0.1}, r"objective\.label_dropout must be a number from 0 to 1, got -0\.1"),
        ({"least_hidden": 2}, r"objective\.least_hidden must be a number from 0 to 1, got 2"),
        ({"hidden_std": 0.0}, r"objective\.hidden_std must be above 0, got 0\.0"),
        ({"repeats": 0}, r"objective\.repeats must be a whole number of at least 1, got 0"),
        ({"shift": 1.5}, r"objective\.shift must be an integer from 0 to below the side, got 1\.5"),
    ],
)
def test_bad_options_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        objective(pipeline.components, whole_batch(), generator(), **options)


def test_bad_models_and_data_are_refused():
    with pytest.raises(ValueError, match=r"unknown key models\.vae"):
        build({"vae": {}}, Bars())
    with pytest.raises(ValueError, match=r"unknown key models\.image_tokenizer\.codes"):
        build({"image_tokenizer": {"codes": 3}}, Bars())
    with pytest.raises(ValueError, match=r"sample_size \+ 2 padding must be a multiple of patch_size 5"):
        build({"image_tokenizer": {"patch_size": 5}}, Bars())
    with pytest.raises(InvalidInputError, match="must have one class a picture, but SimpleNamespace has no labels"):
        build(MODELS, SimpleNamespace(images=Bars().images))


def test_the_built_in_recipe_is_one():
    given = load_recipe("mar-fashion")
    assert given.task == "mar" and set(given.losses) == {"mse", "bound"}
