"""LPIPS and discriminator beside a tokenizer: off by default, each with gradients for its own side alone."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_stages import TOKENIZER, Bars, tokenizer_recipe, whole_batch

from gendiff.errors import WeightsNotFoundError
from gendiff.models.patch_discriminator import PatchDiscriminator
from gendiff.training import frequency_vq, trainer
from gendiff.training.adversarial import patch_losses
from gendiff.training.bare_tokenizer import BareTokenizer
from gendiff.training.frequency_vq import build, objective
from gendiff.training.perceptual import perceptual_loss

DISCRIMINATOR = {"block_out_channels": [8, 16], "norm_num_groups": 4}


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return PatchDiscriminator(1, **DISCRIMINATOR)


def test_there_is_a_number_for_each_patch_that_depends_on_its_own_image_alone(discriminator):
    images = torch.randn(3, 1, 16, 16)
    judged = discriminator(images)
    assert judged.shape == (3, 1, 4, 4)
    torch.testing.assert_close(judged[:1], discriminator(images[:1]))
    torch.testing.assert_close(discriminator.frozen(images), judged)


def test_each_side_has_gradients_of_its_own_term_alone(discriminator):
    real, made = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16, requires_grad=True)
    terms = patch_losses(discriminator, real, made)
    terms["gan"].backward(retain_graph=True)
    assert made.grad is not None and made.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    made.grad = None
    terms["discriminator"].backward()
    assert made.grad is None
    # At chance the last bias is pulled both ways alike.
    assert all(p.grad is not None and (p.grad.abs().sum() > 0 or p.numel() == 1) for p in discriminator.parameters())


def test_the_terms_are_the_hinge_loss_and_minus_the_verdict():
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(1, 2, 3))

        frozen = forward

    for real, made, hinge in ((0.0, 0.0, 1.0), (2.0, -2.0, 0.0), (0.5, -0.25, (0.5 + 0.75) / 2), (-1.0, 1.0, 2.0)):
        terms = patch_losses(Mean(), torch.full((2, 1, 4, 4), real), torch.full((2, 1, 4, 4), made))  # type: ignore
        assert terms["discriminator"].item() == pytest.approx(hinge)
        assert terms["gan"].item() == pytest.approx(-made)


def test_a_discriminator_learns_to_tell_two_kinds_apart(discriminator):
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    images = whole_batch()["image"]
    losses = []
    for _ in range(15):
        loss = patch_losses(discriminator, images, images.flip(0).mean(dim=-1, keepdim=True).expand_as(images))
        optimizer.zero_grad()
        loss["discriminator"].backward()
        optimizer.step()
        losses.append(loss["discriminator"].item())
    assert losses[-1] < 0.3 * losses[0]


def test_both_are_trained_in_one_step_and_the_tokenizer_alone_is_saved(tmp_path):
    recipe = tokenizer_recipe(
        {"discriminator": DISCRIMINATOR}, {"gan": 0.1, "discriminator": 1.0}, steps=3, log_every=1
    )
    threads = torch.get_num_threads()
    made = trainer.train(recipe, tmp_path, dataset=Bars())
    torch.set_num_threads(threads)
    assert isinstance(made, BareTokenizer) and "discriminator" in made.components
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["grad_norm/discriminator"] > 0 and log[-1]["discriminator"] < log[0]["discriminator"]
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "recipe.yaml",
    ]
    assert '"_class_name": "FrequencyVQModel"' in (tmp_path / "final" / "config.json").read_text()


def test_a_bad_width_is_refused():
    with pytest.raises(ValueError, match=r"block_out_channels must be multiples of 8 groups, .* got \(8, 12\)"):
        PatchDiscriminator(1, (8, 12))


def test_lpips_without_weights_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("GENDIFF_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(WeightsNotFoundError, match="vgg16-397923af"):
        build({"vqvae": TOKENIZER, "lpips": {"net": "vgg"}}, Bars())


@pytest.mark.parametrize(
    ("data", "net", "message"),
    [
        (Bars(), "alex", "models.lpips with net alex needs images of at least 31 px, the data have 16"),
        (Bars(channels=2), "vgg", "models.lpips compares images of 1 or 3 channels, the data have 2"),
        (Bars(), "resnet", "net must be one of alex, vgg, got 'resnet'"),
    ],
)
def test_lpips_that_does_not_fit_the_images_is_refused(data, net, message):
    with pytest.raises(ValueError, match=message):
        build({"vqvae": TOKENIZER, "lpips": {"net": net}}, data)


def random_alexnet(path):
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {}
    for number, (out, into, side) in shapes.items():
        state[f"features.{number}.weight"] = torch.randn(out, into, side, side) / (into * side * side) ** 0.5
        state[f"features.{number}.bias"] = torch.randn(out) / 10
    torch.save(state, path)


def test_lpips_is_a_term_with_gradients_for_the_tokenizer_that_is_not_trained_or_saved(tmp_path, monkeypatch):
    torch.manual_seed(0)
    random_alexnet(tmp_path / "alexnet-random.pth")
    monkeypatch.setattr(frequency_vq, "START_IMAGES", 4)
    data = Bars(side=32)
    models = {"vqvae": {**TOKENIZER, "stages": [1, 4, 8]}}
    models["lpips"] = {"net": "alex", "weights": str(tmp_path / "alexnet-random.pth")}
    tokenizer = build(models, data)
    assert not any(p.requires_grad for p in tokenizer.components["lpips"].parameters())
    batch = {"image": torch.stack([data[0]["image"], data[1]["image"]])}
    terms = objective(tokenizer.components, batch, torch.Generator().manual_seed(0))
    terms["lpips"].backward()
    gradient = tokenizer.model.decoder.conv_in.weight.grad
    assert terms["lpips"] > 0 and gradient is not None and gradient.abs().sum() > 0
    assert perceptual_loss(tokenizer.components["lpips"], batch["image"], batch["image"]) == 0
    tokenizer.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
