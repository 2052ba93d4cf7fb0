"""Against diffusers' own Wan model, and with a cache against the whole history, with random weights everywhere."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import WanTransformer3DModel

from gendiff.models.causal_wan import CausalWanTransformer3DModel
from gendiff.nn.frame_plan import history_plan

GEOMETRY = {
    "in_channels": 3,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 20,  # 8 channels for frames, 6 for rows, 6 for columns
    "ffn_dim": 24,
    "freq_dim": 16,
}
HEIGHT, WIDTH, TEXT = 4, 6, 12
CAUSAL = ("frame_causal", "prefix_causal", "block_causal")


def fill(model, seed=0):
    """Random values in every parameter, those that start at 0 or 1 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def wan(**changes) -> CausalWanTransformer3DModel:
    config = {"sample_size": (HEIGHT, WIDTH), "cross_attention_dim": TEXT, "context_frames": 6, **GEOMETRY, **changes}
    return fill(CausalWanTransformer3DModel(**config))


def inputs(frames, batch=2, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    video = torch.randn(batch, 3, frames, HEIGHT, WIDTH, generator=g, dtype=torch.float64).to(dtype)
    text = torch.randn(batch, 5, TEXT, generator=g, dtype=torch.float64).to(dtype)
    return video, text


def diffusers_model() -> WanTransformer3DModel:
    return WanTransformer3DModel(**GEOMETRY, out_channels=3, text_dim=TEXT)


def test_full_attention_equals_diffusers():
    ours, theirs = wan(attention_mode="full"), diffusers_model().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    video, text = inputs(5, dtype=torch.float32)
    times = torch.tensor([750.0, 20.0])
    with torch.no_grad():
        expected = theirs(video, times, text).sample
        got = ours(video, times, text).sample
        by_frame = ours(video, times[:, None].expand(2, 5), text).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(by_frame, expected, atol=1e-4, rtol=0)


def test_full_attention_equals_diffusers_to_the_last_digits_of_float64(monkeypatch):
    # Their code says `.float()` in norms, residuals and rotary tables, which would round float64.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    ours, theirs = wan(attention_mode="full").double(), diffusers_model().double().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    video, text = inputs(4)
    times = torch.tensor([333.0, 900.0])
    with torch.no_grad():
        torch.testing.assert_close(
            ours(video, times, text).sample, theirs(video, times, text).sample, atol=1e-9, rtol=0
        )


def test_other_frame_sizes_and_low_precision_equal_diffusers():
    ours, theirs = wan(attention_mode="full"), diffusers_model().eval()
    theirs.load_state_dict(ours.state_dict())
    g = torch.Generator().manual_seed(5)
    video, text = torch.randn(1, 3, 2, 8, 2, generator=g), torch.randn(1, 7, TEXT, generator=g)
    times = torch.tensor([400.0])
    with torch.no_grad():
        exact = theirs(video, times, text).sample
        torch.testing.assert_close(ours(video, times, text).sample, exact, atol=1e-4, rtol=0)
        low = ours.bfloat16()(video.bfloat16(), times, text.bfloat16()).sample
    assert low.dtype == torch.bfloat16
    assert (low - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("mode", CAUSAL)
@pytest.mark.parametrize("layout", ["dynamic", "static"])
def test_a_cache_gives_what_the_whole_history_gives(mode, layout):
    model, (video, text) = wan(attention_mode=mode).double(), inputs(9)
    times = torch.tensor([600.0, 125.0], dtype=torch.float64)
    cache = model.make_cache(6, 3, layout=layout)
    with torch.no_grad():
        for start in (0, 3):
            written = model(video[:, :, start : start + 3], times * 0, text, kv_cache=cache, cache_mode="write")
            assert written.sample is None
            cache.commit()
        got = model(video[:, :, 6:], times, text, kv_cache=cache, cache_mode="read").sample
        cache.rollback()
        again = model(video[:, :, 6:], times, text, kv_cache=cache, cache_mode="read").sample
        plan = history_plan(9, [0, 3, 6], 9, mode, 0, noisy_from=6)
        expected = model(video, times, text, num_prefix_frames=6, plan=plan).sample[:, :, 6:]
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(again, got, atol=0, rtol=0)
    assert cache.nbytes == 2 * 2 * 2 * 9 * model.sites * model.dim * 8


@pytest.mark.parametrize("mode", CAUSAL)
@pytest.mark.parametrize(("window", "sinks", "layout"), [(4, 0, "dynamic"), (5, 2, "dynamic"), (5, 1, "static")])
def test_frames_that_left_the_window_are_gone(mode, window, sinks, layout):
    model, (video, text) = wan(attention_mode=mode).double(), inputs(14, batch=1)
    time, starts = torch.tensor([600.0], dtype=torch.float64), [0, 3, 5, 8, 11]
    cache = model.make_cache(window, 3, sinks, layout)
    with torch.no_grad():
        for number, (start, stop) in enumerate(itertools.pairwise([*starts, 14])):
            chunk = video[:, :, start:stop]
            got = model(chunk, time, text, kv_cache=cache, cache_mode="read").sample
            cache.rollback()
            plan = history_plan(stop, starts[: number + 1], window, mode, 0, sinks, noisy_from=start)
            expected = model(video[:, :, :stop], time, text, num_prefix_frames=start, plan=plan).sample[:, :, start:]
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
            model(chunk, time * 0, text, kv_cache=cache, cache_mode="write")
            cache.commit()
    assert cache.num_frames == window and cache.total_written == 14


def test_a_cache_moves_with_the_video_not_with_its_start():
    """Ranks count what is visible: a long past that left the window changes no position."""
    model, (video, text) = wan(attention_mode="block_causal", num_layers=1).double(), inputs(9, batch=1)
    time, results = torch.tensor([600.0], dtype=torch.float64), []
    with torch.no_grad():
        for first in (0, 3):  # with one block, keys of frames 3 .. 5 do not depend on frames 0 .. 2
            cache = model.make_cache(3, 3)
            for start in range(first, 6, 3):
                model(video[:, :, start : start + 3], time * 0, text, kv_cache=cache, cache_mode="write")
                cache.commit()
            results.append(model(video[:, :, 6:], time, text, kv_cache=cache, cache_mode="read").sample)
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", CAUSAL)
def test_who_sees_whom(mode):
    model, (video, text) = wan(attention_mode=mode).double(), inputs(5, batch=1)
    time = torch.tensor([600.0], dtype=torch.float64)
    seen = torch.zeros(5, 5, dtype=torch.bool)
    with torch.no_grad():
        base = model(video, time, text, num_prefix_frames=2).sample
        for frame in range(5):
            changed = video.clone()
            changed[:, :, frame] += 1
            moved = (model(changed, time, text, num_prefix_frames=2).sample - base).abs().amax((0, 1, 3, 4))
            seen[:, frame] = moved > 0
    expected = torch.ones(5, 5).tril().bool()
    if mode != "frame_causal":
        expected[2:, 2:] = True
    if mode == "block_causal":
        expected[:2, :2] = True
    assert torch.equal(seen, expected)


def test_masked_text_does_not_count():
    model, (video, text) = wan().double(), inputs(3)
    time, mask = torch.tensor([600.0, 1.0], dtype=torch.float64), torch.tensor([[1, 1, 1, 0, 0]] * 2)
    with torch.no_grad():
        short = model(video, time, text[:, :3]).sample
        masked = model(video, time, text, mask).sample
        whole = model(video, time, text).sample
    torch.testing.assert_close(masked, short, atol=1e-12, rtol=0)
    assert (whole - short).abs().max() > 1e-3


def test_two_caches_do_not_disturb_each_other():
    model, time = wan().double(), torch.tensor([600.0, 125.0], dtype=torch.float64)
    first, second = inputs(6, seed=1), inputs(6, seed=2)

    def steps(video, text):
        cache = model.make_cache(6, 3)
        for start in (0, 3):
            chunk = video[:, :, start : start + 3]
            yield model(chunk, time, text, kv_cache=cache, cache_mode="read").sample
            cache.rollback()
            model(chunk, time * 0, text, kv_cache=cache, cache_mode="write")
            cache.commit()

    with torch.no_grad():
        alone = [list(steps(*first)), list(steps(*second))]
        together = list(zip(steps(*first), steps(*second), strict=True))
    for step, pair in enumerate(together):
        for video, got in enumerate(pair):
            torch.testing.assert_close(got, alone[video][step], atol=0, rtol=0)
    assert not any(name for name, _ in model.named_buffers())


def test_save_and_load(tmp_path):
    model, (video, text) = wan(attention_mode="prefix_causal", chunk_size=2), inputs(4, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    loaded = CausalWanTransformer3DModel.from_pretrained(tmp_path)
    assert loaded.config["chunk_size"] == 2 and loaded.frame_size == (HEIGHT, WIDTH)
    time = torch.tensor([600.0, 125.0])
    with torch.no_grad():
        before = model(video, time, text, num_prefix_frames=1, return_dict=False)[0]
        after = loaded(video, time, text, num_prefix_frames=1).sample
        low = CausalWanTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        low_sample = low(video.bfloat16(), time, text.bfloat16(), num_prefix_frames=1).sample
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert low.scale_shift_table.dtype == torch.float32 and low.proj_out.weight.dtype == torch.bfloat16
    assert low.dtype == torch.bfloat16
    assert (low_sample - before).abs().max() < 0.1 * before.abs().max()


def test_autocast_and_half_precision_with_a_cache():
    (video, text), time, samples = inputs(6, batch=1, dtype=torch.float32), torch.tensor([600.0]), []
    for autocast, dtype in ((False, torch.float32), (True, torch.float32), (False, torch.bfloat16)):
        model = wan().to(dtype)
        cache = model.make_cache(6, 3)
        clean, noisy, words = video[:, :, :3].to(dtype), video[:, :, 3:].to(dtype), text.to(dtype)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(clean, time * 0, words, kv_cache=cache, cache_mode="write")
            cache.commit()
            samples.append(model(noisy, time, words, kv_cache=cache, cache_mode="read").sample)
    for sample in samples[1:]:
        assert sample.dtype == torch.bfloat16
        assert 0 < (sample - samples[0]).abs().max() < 0.1 * samples[0].abs().max()


def test_gradients_reach_every_parameter_with_and_without_checkpointing():
    model, (video, text) = wan().double(), inputs(3, batch=1)
    gradients = []
    for on in (False, True):
        model.zero_grad()
        if on:
            model.enable_gradient_checkpointing()
        model.train()(video, torch.tensor([500.0]).double(), text).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mode": "causal"}, "attention_mode must be one of"),
        ({"patch_size": (2, 2, 2)}, "a token is of one frame"),
        ({"sample_size": (4, 5)}, "sample_size must be"),
        ({"attention_head_dim": 7}, "attention_head_dim must be even"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"num_classes": 3}, "num_classes must be 0"),
        ({"pos": "cyclic"}, "pos must be rope"),
        ({"prefix_references": 2}, "prefix_references must be 0"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        CausalWanTransformer3DModel(**{"sample_size": (HEIGHT, WIDTH), **GEOMETRY, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_hidden_states": None}, r"encoder_hidden_states must be \(B, L, 12\), got None"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 3)}, r"must be \(B, L, 12\), got \(1, 5, 3\)"),
        ({"class_labels": torch.zeros(1).long()}, "class_labels must be None"),
        ({"hidden_states": torch.zeros(1, 3, 3, 4, 5)}, "sides that patches of 2 x 2 divide"),
        ({"hidden_states": torch.zeros(1, 4, 3, 4, 6)}, "must have 3 channels"),
        ({"cache_mode": "read"}, "kv_cache and cache_mode must be given together"),
        ({"cache_mode": "append"}, "cache_mode must be one of"),
        ({"plan": history_plan(4, [0], 4, "full", 0)}, "plan must be of 3 frames"),
        ({"frame_index": torch.arange(2)}, "frame_index must be"),
    ],
)
def test_bad_calls(changes, message):
    arguments = {
        "hidden_states": torch.zeros(1, 3, 3, HEIGHT, WIDTH),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 5, TEXT),
    }
    with pytest.raises(ValueError, match=message):
        wan()(**{**arguments, **changes})


def test_a_cache_is_refused_where_it_cannot_work():
    with pytest.raises(ValueError, match="bidirectional attention cannot be cached"):
        wan(attention_mode="full").make_cache(6, 3)
    model, text = wan(), torch.zeros(1, 5, TEXT)
    video, time = torch.zeros(1, 3, 3, 8, 6), torch.zeros(1)
    with pytest.raises(ValueError, match="frames of 6 tokens as in kv_cache, got 8 x 6"):
        model(video, time, text, kv_cache=model.make_cache(6, 3), cache_mode="write")
