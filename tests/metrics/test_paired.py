from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from gendiff.errors import InvalidInputError, WeightsCorruptError, WeightsNotFoundError
from gendiff.metrics.paired import lpips, paired, psnr, ssim

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Numbers, channels out and in, and sides of the kernels of AlexNet's convolutions."""


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def off_by(images, levels):
    """Images that differ in every value by exactly `levels`, so that the MSE is its square."""
    return torch.where(images < 128, images + levels, images - levels)


def with_noise(images, sigma, seed=1):
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + sigma * drawn).round().clamp(0, 255).byte()


def smooth(batch, side, channels=3):
    ramp = torch.linspace(40, 215, side)
    pictures = [(ramp[:, None] * math.cos(i) ** 2 + ramp[None] * math.sin(i) ** 2) for i in range(batch)]
    return torch.stack(pictures).round().byte()[:, None].repeat(1, channels, 1, 1)


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory):
    """A state dict of torchvision's layout with random numbers in the layers that LPIPS reads, and its file."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for number, (out, into, side) in ALEX.items():
        fan_in = into * side * side
        state[f"features.{number}.weight"] = torch.randn(out, into, side, side, generator=generator) / fan_in**0.5
        state[f"features.{number}.bias"] = torch.randn(out, generator=generator) / 10
    path = tmp_path_factory.mktemp("weights") / "alexnet-random.pth"
    torch.save(state, path)
    return state, path


@pytest.fixture
def given(alexnet):
    return alexnet[1]


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 9, 13), (2, 4, 3, 8, 8)])
def test_psnr_in_closed_form(shape):
    targets = noise(*shape)
    for levels in (1, 10, 100):
        result = psnr(off_by(targets, levels), targets)
        expected = 20 * math.log10(255 / levels)
        assert result.values.shape == shape[:-3] and result.values.dtype == torch.float64
        np.testing.assert_allclose(result.values, expected, atol=1e-5)  # torchmetrics takes log 10 in float32
        assert result.mean == pytest.approx(expected, abs=1e-5)
        assert result.std == pytest.approx(0, abs=1e-9)
        assert result.equal_pairs == 0
        assert result.conditions["data_range"] == 255 and result.conditions["pairs"] == shape[0]


def test_psnr_does_not_depend_on_the_contrast_of_the_images():
    dim = torch.full((1, 1, 8, 8), 10, dtype=torch.uint8)
    assert psnr(dim + 5, dim).mean == pytest.approx(20 * math.log10(255 / 5))


def test_psnr_of_equal_pairs_is_infinite_and_counts_as_the_best_a_differing_pair_can_have():
    targets = noise(3, 1, 8, 8)
    samples = targets.clone()
    samples[1] = off_by(targets[1], 10)
    almost = targets.clone()
    almost[0, 0, 0, 0] ^= 1  # one value, one grey level
    result = psnr(samples, targets)
    ceiling = psnr(almost, targets).values[0].item()
    assert result.values.isinf().tolist() == [True, False, True]
    assert result.equal_pairs == 2
    assert result.conditions["equal_pairs_count_as"] == pytest.approx(ceiling)
    assert ceiling == pytest.approx(10 * math.log10(255**2 * 64))
    assert result.mean == pytest.approx((2 * ceiling + 20 * math.log10(25.5)) / 3)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["values"] == ["inf", pytest.approx(20 * math.log10(25.5)), "inf"]


def test_ssim_is_that_of_scikit_image():
    for channels, height, width in ((1, 28, 28), (3, 20, 33), (1, 11, 11)):
        targets = noise(3, channels, height, width)
        samples = with_noise(targets, 40)
        result = ssim(samples, targets)
        expected = [
            structural_similarity(
                first.permute(1, 2, 0).numpy().astype(np.float64),
                second.permute(1, 2, 0).numpy().astype(np.float64),
                channel_axis=2,
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for first, second in zip(samples, targets, strict=True)
        ]
        np.testing.assert_allclose(result.values.numpy(), expected, atol=1e-9)
        assert result.conditions["window"] == 11
        assert all(0 < value < 1 for value in expected)


def test_ssim_of_equal_images_is_one_and_falls_with_noise():
    targets = smooth(2, 32)
    assert ssim(targets, targets).values.tolist() == pytest.approx([1, 1])
    means = [ssim(with_noise(targets, sigma), targets).mean for sigma in (2, 8, 32)]
    assert means == sorted(means, reverse=True) and means[0] < 1


def test_std_is_over_pairs():
    targets = noise(2, 1, 12, 12)
    samples = torch.stack([off_by(targets[0], 1), off_by(targets[1], 10)])
    assert psnr(samples, targets).std == pytest.approx(20 / math.sqrt(2))
    assert psnr(samples[:1], targets[:1]).std is None
    # A video counts once, however many frames it has: frames of one video are no independent measurements.
    long = psnr(samples[:, None].repeat(1, 6, 1, 1, 1), targets[:, None].repeat(1, 6, 1, 1, 1))
    assert long.std == pytest.approx(20 / math.sqrt(2))


def test_the_drift_curve_of_a_video_that_gets_worse():
    targets = noise(2, 5, 1, 16, 16)
    samples = torch.stack([off_by(targets[:, k], 2**k) for k in range(5)], dim=1)
    result = psnr(samples, targets)
    assert result.values.shape == (2, 5)
    assert result.per_frame == pytest.approx([20 * math.log10(255 / 2**k) for k in range(5)])
    assert result.mean == pytest.approx(np.mean(result.per_frame))
    assert result.conditions["frames"] == 5
    structure = ssim(samples, targets)
    assert structure.per_frame is not None and list(structure.per_frame) == sorted(structure.per_frame, reverse=True)
    images = psnr(samples[:, 3], targets[:, 3])
    assert images.per_frame is None
    torch.testing.assert_close(images.values, result.values[:, 3])


def test_videos_of_equal_first_frames():
    targets = noise(2, 3, 1, 16, 16)
    samples = torch.cat([targets[:, :1], off_by(targets[:, 1:], 10)], dim=1)
    result = psnr(samples, targets)
    assert result.equal_pairs == 2
    assert result.per_frame == pytest.approx(
        [result.conditions["equal_pairs_count_as"], *[20 * math.log10(25.5)] * 2], abs=1e-5
    )


def test_batches_change_nothing():
    targets = smooth(70, 16, 1)
    samples = with_noise(targets, 10)
    for metric in (psnr, ssim):
        one_by_one = torch.cat([metric(a[None], b[None]).values for a, b in zip(samples, targets, strict=True)])
        torch.testing.assert_close(metric(samples, targets).values, one_by_one, rtol=0, atol=1e-12)


def test_lpips_is_zero_for_equal_images_symmetric_and_grows_with_noise(given):
    targets = smooth(2, 40)
    assert lpips(targets, targets, weights=given).values.tolist() == [0, 0]
    noisy = [with_noise(targets, sigma) for sigma in (3, 12, 48)]
    results = [lpips(images, targets, weights=given) for images in noisy]
    for earlier, later in itertools.pairwise(results):
        assert (later.values > earlier.values).all()
    assert (results[0].values > 0).all()
    back = lpips(targets, noisy[1], weights=given)
    torch.testing.assert_close(back.values, results[1].values, rtol=0, atol=1e-7)


def test_lpips_is_the_formula_of_the_paper(given, alexnet):
    """Computed here from torchvision's layout of AlexNet and the heads in the wheel, without the package's classes."""
    import lpips as package

    state, _ = alexnet
    heads = torch.load(
        Path(package.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True
    )

    def taps(images):
        x = (images / 127.5 - 1 - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        settings = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
        for number, (stride, padding) in settings.items():
            if number in (3, 6):
                x = nn.functional.max_pool2d(x, 3, 2)
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            x = nn.functional.conv2d(x, weight, bias, stride, padding).relu()
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    targets = smooth(2, 40)
    samples = with_noise(targets, 20)
    expected = torch.zeros(2)
    for k, (first, second) in enumerate(zip(taps(samples.float()), taps(targets.float()), strict=True)):
        weight = heads[f"lin{k}.model.1.weight"].view(1, -1, 1, 1)
        expected += ((first - second).square() * weight).sum(1).mean((1, 2))
    torch.testing.assert_close(lpips(samples, targets, weights=given).values, expected.double(), rtol=1e-4, atol=1e-7)


def test_lpips_records_its_backbone_and_leaves_the_random_state(given):
    targets = noise(2, 3, 1, 32, 32)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    result = lpips(off_by(targets, 30), targets, weights=given, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.conditions["weights_sha256"] == hashlib.sha256(given.read_bytes()).hexdigest()
    assert result.conditions["published_weights"] is False  # the numbers in it are random
    assert result.conditions["net"] == "alex" and result.conditions["resize"] is None
    assert result.values.shape == (2, 3) and result.per_frame is not None
    json.dumps(result.to_dict(), allow_nan=False)


def test_lpips_of_grey_is_that_of_three_equal_channels(given):
    targets = smooth(2, 32, 1)
    samples = with_noise(targets, 20)
    grey = lpips(samples, targets, weights=given).values
    repeated = [images.repeat(1, 3, 1, 1) for images in (samples, targets)]
    torch.testing.assert_close(grey, lpips(*repeated, weights=given).values)


def test_small_images_need_a_resize_for_lpips(given):
    targets = smooth(1, 28, 1)
    samples = with_noise(targets, 20)
    with pytest.raises(InvalidInputError, match=r"samples are 28x28 px, LPIPS alex needs .* 31 px; pass resize=64"):
        lpips(samples, targets, weights=given)
    with pytest.raises(InvalidInputError, match="resize is 30"):
        lpips(samples, targets, weights=given, resize=30)
    result = lpips(samples, targets, weights=given, resize=64)
    assert result.mean > 0 and result.conditions["resize"] == 64


def test_a_file_that_is_not_the_backbone(given, alexnet, tmp_path):
    targets = noise(1, 3, 32, 32)
    state, _ = alexnet
    damaged = tmp_path / "damaged.pth"
    torch.save({name: value for name, value in state.items() if name != "features.8.bias"}, damaged)
    with pytest.raises(WeightsCorruptError, match=r"features.8.bias is missing"):
        lpips(targets, targets, weights=damaged)
    torch.save({**state, "features.0.weight": torch.zeros(64, 1, 11, 11)}, damaged)
    with pytest.raises(WeightsCorruptError, match=r"features.0.weight is \(64, 1, 11, 11\), not \(64, 3, 11, 11\)"):
        lpips(targets, targets, weights=damaged)
    damaged.write_bytes(given.read_bytes()[:1000])
    with pytest.raises(WeightsCorruptError, match=r"damaged\.pth cannot be read"):
        lpips(targets, targets, weights=damaged)
    torch.save([1, 2], damaged)
    with pytest.raises(WeightsCorruptError, match="holds list"):
        lpips(targets, targets, weights=damaged)


def test_a_backbone_that_is_not_there_or_not_the_one_its_name_says(given, tmp_path, monkeypatch):
    targets = noise(1, 3, 32, 32)
    monkeypatch.setenv("GENDIFF_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(WeightsNotFoundError, match=r"AlexNet .* not found.* alexnet-owt-7be5be79\.pth"):
        lpips(targets, targets)
    published = tmp_path / "alexnet-owt-7be5be79.pth"
    published.write_bytes(given.read_bytes())
    with pytest.raises(WeightsCorruptError, match="expected 7be5be79"):
        lpips(targets, targets)


def test_several_metrics_at_once(given):
    targets = smooth(2, 32)
    samples = with_noise(targets, 10)
    results = paired(samples, targets, weights=given)
    assert list(results) == ["psnr", "ssim", "lpips"]
    assert results["ssim"].mean == ssim(samples, targets).mean
    assert list(paired(samples, targets, metrics=["psnr"])) == ["psnr"]
    for wrong in (["psnr", "fid"], [], "psnr"):
        with pytest.raises(InvalidInputError, match="metrics must be a list of names out of psnr, ssim, lpips"):
            paired(samples, targets, metrics=wrong)


@pytest.mark.parametrize("metric", [psnr, ssim, lpips])
def test_bad_input_is_refused_before_any_work(metric):
    images = noise(2, 3, 16, 16)
    with pytest.raises(InvalidInputError, match=r"\(2, 3, 16, 16\) torch.uint8 .*\(1, 3, 16, 16\)"):
        metric(images, images[:1])
    with pytest.raises(InvalidInputError, match=r"torch.uint8 .* torch.float32 must have one shape and one type"):
        metric(images, images.float())
    with pytest.raises(InvalidInputError, match=r"must be uint8, .* got torch.float32"):
        metric(images.float(), images.float())
    for wrong in (images[0], images[:, :2], images[:0]):
        with pytest.raises(InvalidInputError, match="with C = 1 or 3 and not empty"):
            metric(wrong, wrong)
    with pytest.raises(InvalidInputError, match="targets must be a uint8 tensor, got ndarray"):
        metric(images, images.numpy())


def test_images_smaller_than_the_window_of_ssim():
    images = noise(2, 1, 8, 12)
    with pytest.raises(InvalidInputError, match="samples are 8x12 px, SSIM needs sides of at least its window of 11"):
        ssim(images, images)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 2.0}, {"resize": 0}, {"net": "squeeze"}])
def test_bad_arguments_of_lpips(arguments):
    images = noise(1, 3, 32, 32)
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        lpips(images, images, **arguments)
