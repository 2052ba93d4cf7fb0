"""What every extractor promises, by name and for modules of one's own."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from gendiff.errors import InvalidInputError, WeightsNotFoundError
from gendiff.metrics.extractors import ALIASES, EXTRACTORS, get_extractor
from gendiff.metrics.extractors.base import FeatureExtractor
from gendiff.metrics.extractors.lite0 import TAPS, Lite0Extractor
from gendiff.models.image_classifier import ImageClassifier

DIMS = {**{f"lite0-{dim}": dim for dim in TAPS}, "pixel": 784, "fmnist-cnn": 128, "digit-cnn": 128}


class Tiny(nn.Module):
    """A module that knows nothing of gendiff; in training mode its rows would depend on one another."""

    def __init__(self, weights=None):
        super().__init__()
        torch.manual_seed(0 if weights is None else int(weights))
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))

    def forward(self, images):
        return self.layers(images / 255).mean((2, 3))


class Picture:
    """Not a module."""


@pytest.mark.parametrize("name", DIMS)
def test_rows_have_their_dimension_and_do_not_depend_on_the_batch(name, photos):
    extractor = get_extractor(name)
    rows = extractor(photos)
    assert (extractor.id, extractor.label, extractor.dim) == (name, f"FD[{name}]", DIMS[name])
    assert rows.shape == (5, extractor.dim) and rows.dtype == torch.float32 and rows.isfinite().all()
    assert extractor.input_spec and "\n" not in extractor.input_spec
    assert (extractor.weights_sha256 is None) == (name == "pixel")
    one_by_one = torch.cat([extractor(photo[None]) for photo in photos])
    torch.testing.assert_close(one_by_one, rows, rtol=1e-5, atol=1e-5 * rows.abs().max().item())
    assert torch.equal(extractor(photos), rows) and torch.equal(get_extractor(name)(photos), rows)
    assert rows.std(0).max() > 1e-3  # pictures differ, so their features must


@pytest.mark.parametrize("name", ["lite0-112", "pixel", "fmnist-cnn"])
def test_grey_images_need_not_be_copied_into_three_channels(name, photos):
    grey = photos[:, :1]
    repeated = grey.repeat(1, 3, 1, 1)
    torch.testing.assert_close(get_extractor(name)(grey.expand(-1, 3, -1, -1)), get_extractor(name)(repeated))


def test_features_and_logits_come_of_one_walk(photos):
    extractor = get_extractor("fmnist-cnn")
    walks = []
    extractor.model.hidden.register_forward_hook(lambda *_: walks.append(1))
    rows, logits = extractor.features_and_logits(photos)
    assert len(walks) == 1
    assert torch.equal(rows, extractor(photos)) and torch.equal(logits, extractor.logits(photos))


def test_luma_leaves_grey_as_it_is(photos):
    grey = photos[:, :1, :28, :28]
    rows = get_extractor("pixel")(grey.repeat(1, 3, 1, 1))
    assert torch.equal(rows, grey.flatten(1) / 255)


@pytest.mark.parametrize("name", ["lite0-112", "pixel", "fmnist-cnn"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 28, 28), r"uint8 \(B, 3, H, W\) in 0 .. 255, as they are saved; got torch.float32"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), r"must be \(B, 3, H, W\), none of them 0, got \(2, 1, 28, 28\)"),
        (torch.zeros(3, 28, 28, dtype=torch.uint8), r"got \(3, 28, 28\)"),
        (torch.zeros(0, 3, 28, 28, dtype=torch.uint8), r"got \(0, 3, 28, 28\)"),
        ([[0]], "got list"),
    ],
)
def test_only_bytes_of_three_channels_are_taken(name, images, message):
    with pytest.raises(InvalidInputError, match=message):
        get_extractor(name)(images)


def test_settings_of_the_caller_change_no_number_and_are_left_as_they_were(photos):
    extractor = get_extractor("lite0-40")
    rows = extractor(photos)
    extractor.train()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(extractor(photos), rows)
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert not any(module.training for module in extractor.modules())
    assert not extractor(photos).requires_grad
    state = torch.random.get_rng_state()
    get_extractor("lite0-40")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_logits_come_from_networks_that_classify(photos):
    classifier = get_extractor("fmnist-cnn")
    assert classifier.logits(photos).shape == (5, len(classifier.classes)) == (5, 10)
    assert get_extractor("lite0-112").logits(photos).shape == (5, 1000)
    with pytest.raises(InvalidInputError, match="extractor pixel has no logits"):
        get_extractor("pixel").logits(photos)


def test_the_head_of_lite0_is_what_its_package_computes(photos):
    extractor = Lite0Extractor(1280)
    pixels = (nn.functional.interpolate(photos.float(), size=(64, 64), mode="bilinear", antialias=True) - 127) / 128
    with torch.inference_mode():
        expected = extractor.network.extract_features(pixels).mean((2, 3))
        logits = extractor.network(pixels)
    torch.testing.assert_close(extractor(photos), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor.logits(photos), logits, rtol=1e-4, atol=1e-4)


def test_lite0_knows_a_cat():
    data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None]
    logits = Lite0Extractor(size=224).logits(cat)
    assert {281, 282, 285} >= set(logits.topk(2).indices[0].tolist())  # tabby, tiger cat, Egyptian cat


def test_batch_norm_never_follows_the_images(photos):
    extractor = Lite0Extractor(40)
    extractor.network.train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    assert torch.equal(extractor(photos), get_extractor("lite0-40")(photos))
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())


def test_another_size_of_lite0_has_another_id(photos):
    extractor = Lite0Extractor(112, size=96)
    assert extractor.label == "FD[lite0-112-96px]" and "96x96" in extractor.input_spec
    assert not torch.allclose(extractor(photos), get_extractor("lite0-112")(photos), rtol=0.01)
    with pytest.raises(InvalidInputError, match="size must be a multiple of 32, got 100"):
        Lite0Extractor(112, size=100)
    with pytest.raises(InvalidInputError, match=r"dim must be one of 40, 80, .* got 64"):
        Lite0Extractor(64)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_a_classifier_from_a_folder(channels, side, tmp_path, photos):
    torch.manual_seed(0)
    model = ImageClassifier(channels, side, 4, widths=(8, 8), feature_dim=6).eval()
    model.save_pretrained(tmp_path / "model")
    extractor = get_extractor("fmnist-cnn", weights=tmp_path / "model")
    assert extractor.id == f"fmnist-cnn@{extractor.weights_sha256[:8]}" and extractor.dim == 6
    images = photos[..., :side, :side] if side < 36 else photos
    pixels = images.float()
    if channels == 1:
        pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    with torch.inference_mode():
        expected = model.features(pixels / 127.5 - 1)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_that_is_not_there():
    with pytest.raises(WeightsNotFoundError, match=r"fmnist-cnn weights not found: .*nowhere holds no config.json"):
        get_extractor("fmnist-cnn", weights="nowhere")


def test_a_module_of_ones_own(photos):
    module = Tiny().train()
    extractor = get_extractor(module)
    expected = Tiny().eval()(photos)
    torch.testing.assert_close(extractor(photos), expected)
    assert extractor.dim == 5 and extractor.label == f"FD[Tiny@{extractor.weights_sha256[:8]}]"
    assert get_extractor(extractor) is extractor
    with pytest.raises(InvalidInputError, match="weights must be None for a module"):
        get_extractor(module, weights="file.pth")


def test_a_class_by_its_path(photos, monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    first = get_extractor("test_contract:Tiny")
    other = get_extractor("test_contract:Tiny", weights="7")
    assert first.id.startswith("test_contract:Tiny@") and first.id != other.id
    torch.testing.assert_close(first(photos), Tiny().eval()(photos))
    with pytest.raises(InvalidInputError, match=r"Picture must be a torch.nn.Module, got Picture"):
        get_extractor("test_contract:Picture")
    with pytest.raises(InvalidInputError, match="cannot be made with weights="):
        get_extractor("test_contract:Picture", weights="7")
    for name in ("test_contract:Nothing", "no_such_module:Tiny", ":Tiny"):
        with pytest.raises(InvalidInputError, match="cannot be imported"):
            get_extractor(name)


def test_a_module_that_answers_something_else():
    with pytest.raises(InvalidInputError, match=r"Identity must map uint8 .* to \(2, d\), got \(2, 3, 64, 64\)"):
        get_extractor(nn.Identity())


def test_names():
    assert set(ALIASES.values()) <= set(EXTRACTORS)
    assert get_extractor("lite0").id == "lite0-1280"
    with pytest.raises(InvalidInputError, match=r"unknown extractor 'lite0-111'; known: .* Did you mean 'lite0-112'"):
        get_extractor("lite0-111")
    with pytest.raises(InvalidInputError, match="weights must be None for pixel"):
        get_extractor("pixel", weights="x")


def test_the_base_is_abstract():
    assert inspect.isabstract(FeatureExtractor)
