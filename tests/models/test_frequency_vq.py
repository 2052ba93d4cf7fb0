"""The tokenizer: what it encodes it decodes, band by band, and what it is given must be images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gendiff.models import frequency_vq
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.nn.bands import lowpasses

TEN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SHIPPED = [(28, 1, (1, 2, 3, 4, 5, 7)), (32, 3, (1, 2, 3, 4, 6, 8))]
SPACINGS = ["none", "linear", "area", "nyquist"]
BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-14}


def make(side: int = 16, channels: int = 1, stages=(1, 2, 3, 4), dtype=torch.float32, **options) -> FrequencyVQModel:
    torch.manual_seed(0)
    tiny = {"latent_channels": 8, "codebook_size": 32, "block_out_channels": (8, 16), "layers_per_block": 1}
    return FrequencyVQModel(side, channels, stages, norm_num_groups=4, **{**tiny, **options}).to(dtype).eval()


def images(model: FrequencyVQModel, batch: int = 3) -> Tensor:
    config = model.config
    shape = (batch, config["in_channels"], config["sample_size"], config["sample_size"])
    return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1).to(model.dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("side", "channels", "stages"), SHIPPED)
@torch.no_grad()
def test_what_is_encoded_is_decoded(side: int, channels: int, stages: tuple[int, ...], spacing: str, dtype):
    model = make(side, channels, stages, dtype, band_spacing=spacing)
    x = images(model)
    encoded, forward = model.encode(x), model(x)
    assert [tuple(codes.shape) for codes in encoded.tokens] == [(3, p * p) for p in stages]
    assert all(codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 32 for codes in encoded.tokens)
    assert all(torch.equal(a, b) for a, b in zip(encoded.tokens, forward.quantized.tokens, strict=True))
    sums = model.quantizer.sums(encoded.tokens)
    assert encoded.f.dtype == encoded.f_hat.dtype == dtype and torch.equal(encoded.f_hat, sums[-1])
    decoded = model.decode(encoded.tokens)
    assert torch.equal(decoded, model.decode(f_hat=encoded.f_hat)) and decoded.shape == x.shape
    # Gradients go straight through as f + (f_hat - f), which rounds; the decoder adds its own.
    assert (decoded - forward.sample.clamp(-1, 1)).abs().max() <= 5 * BOUNDS[dtype]
    for k in (1, 3):
        assert torch.equal(model.decode(encoded.tokens[:k]), model.decode(f_hat=sums[k - 1]))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("side", "channels", "stages"), SHIPPED)
@torch.no_grad()
def test_bands_of_a_real_map(side: int, channels: int, stages: tuple[int, ...], spacing: str, dtype):
    model = make(side, channels, stages, dtype, band_spacing=spacing)
    f = model.encode(images(model)).f
    bands, report = model.bands(f), model.band_report()
    assert len(bands) == (1 if spacing == "none" else len(stages))
    assert (sum(bands) - f).abs().max() <= BOUNDS[dtype]
    energy = sum(float(band.double().square().sum()) for band in bands)
    assert energy == pytest.approx(float(f.double().square().sum()), rel=1e-6)
    if report.radii is None:
        assert report.coefficients == [stages[-1] ** 2] * len(stages) and not report.empty
        return
    assert sum(report.coefficients) == stages[-1] ** 2
    for k in report.empty:
        assert not bands[k].any() and report.coefficients[k] == 0
    for below, k in zip(lowpasses(f, model.radii, len(stages)), range(len(stages)), strict=True):
        assert (sum(bands[: k + 1]) - below).abs().max() <= BOUNDS[dtype]


@torch.no_grad()
def test_a_band_limited_map_is_quantised_from_its_own_stage_on():
    """What a stage is to say does not contain frequencies above its band."""
    model = make(28, 1, (1, 2, 3, 4, 5, 7), band_spacing="area", phi_ratio=0.0)
    f = model.encode(images(model)).f
    radii = model.radii
    assert radii is not None
    low = lowpasses(f, radii, 6)[2]
    high = f - low
    a = model.quantizer.quantize(lowpasses(low, radii, 6))
    b = model.quantizer.quantize(lowpasses(low + 3 * high, radii, 6))
    assert all(torch.equal(x, y) for x, y in zip(a.tokens[:3], b.tokens[:3], strict=True))
    assert not torch.equal(a.tokens[3], b.tokens[3])


@torch.no_grad()
def test_inputs_of_the_transformer_are_means_of_what_was_said_before():
    for _, _, stages in SHIPPED:
        model = make(4 * stages[-1], 1, stages)
        tokens = model.encode(images(model)).tokens
        inputs, sums = model.tokens_to_inputs(tokens), model.quantizer.sums(tokens)
        assert inputs.shape == (3, sum(p * p for p in stages[1:]), 8)
        for k, rows in enumerate(inputs.split([p * p for p in stages[1:]], dim=1)):
            pooled = torch.nn.functional.adaptive_avg_pool2d(sums[k], stages[k + 1])
            assert torch.equal(rows, pooled.flatten(2).transpose(1, 2))
        assert torch.equal(model.tokens_to_inputs(tokens[:-1]), inputs)
        assert torch.equal(model.tokens_to_inputs(tokens[:2]), inputs[:, : stages[1] ** 2 + stages[2] ** 2])


def test_the_loss_is_that_of_every_stage_both_ways():
    model = make(28, 1, (1, 2, 3, 4, 5, 7), torch.float64)
    x = images(model)
    output = model(x, beta=0.25)
    f = model.encode(x).f
    targets = lowpasses(f, model.radii, 6)
    sums = model.quantizer.sums(output.quantized.tokens)
    gaps = torch.stack([(a - b).square().mean() for a, b in zip(sums, targets, strict=True)])
    assert torch.allclose(output.vq_loss, 1.25 * gaps.mean(), atol=1e-12)
    assert torch.allclose(output.feature_loss, gaps[-1], atol=1e-12)
    encoder, codebook = model.encoder.conv_in.weight, model.quantizer.codebook.weight
    at_zero, at_one = (model(x, beta=beta).vq_loss for beta in (0.0, 1.0))
    to_codes = torch.autograd.grad(at_zero, [encoder, codebook], allow_unused=True)
    assert to_codes[0] is None or not to_codes[0].any()
    assert to_codes[1].any()
    both = torch.autograd.grad(at_one, [encoder, codebook])
    assert both[0].any() and torch.allclose(both[1], to_codes[1])


def test_an_image_may_end_at_any_stage_and_gradients_go_straight_through():
    model = make(dtype=torch.float64)
    x = images(model)
    output = model(x, last_stage=torch.tensor([0, 3, 1]))
    sums = output.quantized.sums
    for row, stage in enumerate([0, 3, 1]):
        assert torch.allclose(output.sample[row], model._reconstruct(sums[stage])[row], atol=1e-12)
    model(x).sample.square().sum().backward()
    with_codes = model.quant_conv.bias.grad.clone()
    model.zero_grad()
    f = model.encode(x).f
    f_hat = (model.encode(x).f_hat - f).detach() + f
    torch.autograd.backward(model._reconstruct(f_hat).square().sum())
    assert torch.allclose(with_codes, model.quant_conv.bias.grad, rtol=1e-9) and with_codes.any()


def test_one_step_moves_every_weight():
    model = make(28, 1, (1, 2, 3, 4, 5, 7)).train()
    output = model(images(model))
    (output.sample.square().mean() + output.vq_loss + output.feature_loss).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Softmax does not feel what is added to all its keys.
    assert [name for name in still if not name.endswith("to_k.bias")] == []


@pytest.mark.parametrize("spacing", ["none", "linear", [0.5, 1.25, 2.0]])
def test_it_loads_as_it_was_saved(spacing, tmp_path):
    model = make(band_spacing=spacing, phi_index=[1, 1, 0, 2], phi_ratio=0.25, cosine_codes=True)
    model.quantizer.code_use += 3
    model.save_pretrained(tmp_path)
    loaded = FrequencyVQModel.from_pretrained(tmp_path)
    saved, found = model.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys() and all(torch.equal(saved[name], found[name]) for name in saved)
    assert loaded.quantizer.smoother_index == (1, 1, 0, 2) and loaded.radii == model.radii
    with torch.no_grad():
        a, b = model.encode(images(model)), loaded.encode(images(model))
        assert all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))
        assert torch.equal(model.decode(a.tokens), loaded.decode(b.tokens))


@torch.no_grad()
def test_one_stage_is_a_plain_vector_quantiser():
    model = make(stages=(4,))
    encoded = model.encode(images(model))
    distances = torch.cdist(encoded.f.flatten(2).transpose(1, 2), model.quantizer.codebook.weight[None])
    assert torch.equal(encoded.tokens[0], distances.argmin(dim=-1))
    assert model.band_report().coefficients == [16] and model.decode(encoded.tokens).shape == (3, 1, 16, 16)
    with pytest.raises(ValueError, match="tokens of a model of one stage are read by nobody"):
        model.tokens_to_inputs(encoded.tokens)


@torch.no_grad()
def test_codes_of_a_batch_do_not_depend_on_its_mates():
    model = make(28, 1, (1, 2, 3, 4, 5, 7))
    x = images(model)
    together = model.encode(x).tokens
    for row in range(3):
        assert all(
            torch.equal(a[0], b[row]) for a, b in zip(model.encode(x[row : row + 1]).tokens, together, strict=True)
        )


@torch.no_grad()
def test_in_half_precision_decoding_still_adds_up_in_full():
    model = make(28, 1, (1, 2, 3, 4, 5, 7)).to(torch.bfloat16)
    x = images(model)
    encoded = model.encode(x)
    assert encoded.f.dtype == encoded.f_hat.dtype == torch.float32
    assert torch.equal(model.quantizer.sums(encoded.tokens)[-1], encoded.f_hat)
    assert model.decode(encoded.tokens).isfinite().all()


def test_the_published_size():
    with torch.device("meta"):
        model = FrequencyVQModel(256, 3, TEN, 32, 4096, (160, 160, 320, 320, 640), 2, 32, "conv", "none")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sum(sizes.values()) == 108_948_355  # 108.95 M
    assert [round(sizes[name] / 1e6, 1) for name in ("encoder", "decoder")] == [44.1, 64.7]
    assert round(sizes["quantizer"] / 1e6, 2) == 0.17
    assert model.quantizer.smoother_index == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3) == tuple(model.config["phi_index"])
    assert model.stride == 16


def test_the_cheap_stem_halves_the_sides_once_more():
    model = make(16, 3, (1, 4), stem="patch2")
    assert model.stride == 4 and model.encoder.conv_in(torch.zeros(1, 3, 16, 16)).shape == (1, 8, 8, 8)
    assert make(16, 3, (1, 8), stem="conv").stride == 2


def test_bands_that_stay_empty_are_a_warning_once(caplog):
    frequency_vq._WARNED.clear()

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == frequency_vq.__name__]

    for _ in range(3):
        assert make(28, 1, (1, 2, 3, 4, 5, 7), band_spacing="linear").band_report().empty == [1, 2]
    assert len(warnings()) == 1
    assert (
        "band_spacing 'linear' leaves stages [1, 2] without any frequency, with radii [0.048, 0.238," in warnings()[0]
    )
    make(28, 1, (1, 2, 3, 4, 5, 7), band_spacing="area")  # no band is empty
    assert len(warnings()) == 1
    make(32, 1, (1, 2, 3, 4, 6, 8), band_spacing="linear")  # another choice
    assert len(warnings()) == 2


BAD_CONFIGS = [
    ({"stages": ()}, r"stages must be positive whole numbers that never decrease, got \[\]"),
    ({"stages": (1, 3, 2, 4)}, r"never decrease, got \[1, 3, 2, 4\]"),
    ({"stages": (1, 2, 3)}, r"stages must end with the side of the latent map, 4, got \[1, 2, 3\]"),
    ({"side": 18}, "sample_size must be a multiple of the stride 4, got 18"),
    ({"side": 20}, "must end with the side of the latent map, 5"),
    ({"stem": "patch4"}, "stem must be one of conv, patch2, got 'patch4'"),
    ({"band_spacing": "octave"}, "band_spacing must be one of none, linear, area, nyquist, or 3 radii, got 'octave'"),
    ({"band_spacing": [1.0, 0.5, 2.0]}, "must be 3 increasing positive numbers"),
    (
        {"band_spacing": "linear", "allow_empty_bands": False},
        r"'linear' leaves stages \[1\] without any frequency, with radii \[0.094, .*allow_empty_bands=True",
    ),
    (
        {"band_spacing": [0.5, 0.6, 0.7], "allow_empty_bands": False},
        r"leaves stages \[1, 2\] without any frequency, with radii \[0.5, 0.6, 0.7\]",
    ),
    ({"phi_index": (0, 1, 2)}, r"phi_index must have 4 numbers, one for each stage, from 0 to 3, got \[0, 1, 2\]"),
    ({"phi_index": (0, 1, 2, 4)}, "from 0 to 3"),
    ({"num_phi": 0}, "num_phi must be from 1 to 4, got 0"),
    ({"phi_ratio": 1.5}, "phi_ratio must be from 0 .* to 1, got 1.5"),
    ({"phi_ratio": math.nan}, "phi_ratio must be from 0 .* to 1, got nan"),
]


@pytest.mark.parametrize(("options", "message"), BAD_CONFIGS, ids=[message[:40] for _, message in BAD_CONFIGS])
def test_a_bad_config_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make(**options)


GOOD = torch.zeros(2, 1, 16, 16)


def spoiled(value: float) -> Tensor:
    x = GOOD.clone()
    x[1, 0, 3, 4] = value
    return x


BAD_IMAGES = [
    (GOOD.byte(), r"images must be floating point in \[-1, 1\], got torch.uint8; the image processor makes them"),
    (GOOD[..., :15], r"images must be \(B, 1, 16, 16\), 4 times the stride 4, got \(2, 1, 16, 15\)"),
    (torch.zeros(2, 1, 20, 20), r"\(B, 1, 16, 16\), 4 times the stride 4, got \(2, 1, 20, 20\)"),
    (torch.zeros(2, 3, 16, 16), r"\(B, 1, 16, 16\).* got \(2, 3, 16, 16\)"),
    (GOOD[0], r"images must be \(B, 1, 16, 16\).* got \(1, 16, 16\)"),
    (spoiled(1.002), r"images must be in \[-1, 1\], got 0 to 1; the image processor scales them"),
    (spoiled(-3.0), r"images must be in \[-1, 1\], got -3 to 0; the image processor"),
    (spoiled(math.nan), "images must be finite, got NaN or infinity"),
    (spoiled(math.inf), "images must be finite, got NaN or infinity"),
]


@pytest.mark.parametrize(("x", "message"), BAD_IMAGES, ids=[message[:40] for _, message in BAD_IMAGES])
def test_what_is_no_image_is_named_before_any_work(x: Tensor, message: str):
    model = make()
    model.encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder ran"))
    with pytest.raises(ValueError, match=message) as raised:
        model.encode(x)
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_rounding_is_no_error():
    assert len(make().encode(spoiled(1.0009)).tokens) == 4


def tokens(**changes: Tensor) -> list[Tensor]:
    good = [torch.zeros(2, side * side, dtype=torch.int64) for side in (1, 2, 3, 4)]
    for name, codes in changes.items():
        good[int(name[1])] = codes
    return good


BAD_TOKENS = [
    ([], "tokens must be of 1 to 4 stages, got 0"),
    ([*tokens(), tokens()[3]], "tokens must be of 1 to 4 stages, got 5"),
    (
        tokens(s1=torch.zeros(2, 3, dtype=torch.int64)),
        r"tokens of stage 1 must be int64 \(2, 4\), got torch.int64 \(2, 3\)",
    ),
    (tokens(s2=torch.zeros(3, 9, dtype=torch.int64)), r"tokens of stage 2 must be int64 \(2, 9\).* \(3, 9\)"),
    (tokens(s3=torch.zeros(2, 4, 4, dtype=torch.int64)), r"tokens of stage 3 must be int64 \(2, 16\).* \(2, 4, 4\)"),
    (tokens(s0=torch.zeros(2, 1)), r"tokens of stage 0 must be int64 \(2, 1\), got torch.float32"),
    (tokens(s1=torch.full((2, 4), 32)), "tokens of stage 1 must be from 0 to 31, got 32 to 32"),
    (tokens(s3=torch.full((2, 16), -1)), "tokens of stage 3 must be from 0 to 31, got -1 to -1"),
]


@pytest.mark.parametrize(("given", "message"), BAD_TOKENS, ids=[message[:40] for _, message in BAD_TOKENS])
def test_what_are_no_tokens_is_named_by_stage(given: list[Tensor], message: str):
    model = make()
    model.decoder.register_forward_pre_hook(lambda *_: pytest.fail("the decoder ran"))
    for use in (model.decode, model.tokens_to_inputs):
        with pytest.raises(ValueError, match=message):
            use(given)


def test_decoding_wants_tokens_or_their_sum():
    model = make()
    for arguments in ({}, {"tokens": tokens(), "f_hat": torch.zeros(2, 8, 4, 4)}):
        with pytest.raises(ValueError, match="either tokens or f_hat, not both"):
            model.decode(**arguments)
