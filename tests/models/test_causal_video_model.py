"""The causal video transformer as a network: construction, saving, text, cost, dtypes, compiled code, errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from gendiff.models.causal_video import CausalVideoTransformer3DModel
from gendiff.nn.frame_plan import prefix_plan

LAYOUTS = ["factorized", "joint"]


def video(frames: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 1, frames, 16, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_an_untrained_network_says_exactly_zero(layout, tiny_video_transformer):
    torch.manual_seed(0)
    drawn = tiny_video_transformer(attention_layout=layout, cross_attention_dim=12)
    model = CausalVideoTransformer3DModel(**{k: v for k, v in drawn.config.items() if not k.startswith("_")})
    arguments = {"encoder_hidden_states": torch.ones(2, 3, 12), "num_prefix_frames": 1}
    out = model(video(3), torch.tensor([5, 9]), **arguments).sample
    assert out.shape == (2, 1, 3, 16, 8) and not out.any()
    assert drawn(video(3), torch.tensor([5, 9]), **arguments).sample.abs().mean() > 0.1


@torch.no_grad()
def test_patches_keep_their_place():
    """An oblong frame goes through patches and back: without blocks, a pixel moves its own patch alone."""
    torch.manual_seed(0)
    model = CausalVideoTransformer3DModel((16, 8), in_channels=2, num_layers=1, num_attention_heads=2)
    torch.nn.init.normal_(model.patch_out.weight)
    frames = torch.randn(1, 2, 2, 16, 8)
    other = frames.clone()
    other[0, 1, 1, 13, 2] += 1
    changed = (model(other, torch.tensor(3)).sample != model(frames, torch.tensor(3)).sample).nonzero()
    assert set(changed[:, 2].tolist()) == {1}
    assert set(changed[:, 3].tolist()) == {12, 13, 14, 15} and set(changed[:, 4].tolist()) == {0, 1, 2, 3}


RELOAD = """
import sys, torch
from gendiff.models.causal_video import CausalVideoTransformer3DModel
model = CausalVideoTransformer3DModel.from_pretrained(sys.argv[1])
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    out = model(**inputs).sample
torch.save({"out": out, "config": dict(model.config)}, sys.argv[3])
"""


@torch.no_grad()
def test_saved_and_loaded_elsewhere_says_the_same(tmp_path, tiny_video_transformer):
    settings = {"pos": "cyclic", "attention_mode": "prefix_causal", "qk_norm": True, "prefix_references": 3}
    model = tiny_video_transformer(**settings, cross_attention_dim=12, mlp_ratio=2.0, p_empty=0.0)
    inputs = {"hidden_states": video(5), "timestep": torch.tensor([7, 700]), "num_prefix_frames": 2}
    inputs |= {"class_labels": torch.tensor([0, 3]), "encoder_hidden_states": torch.ones(2, 3, 12)}
    model.save_pretrained(tmp_path / "model")
    torch.save(inputs, tmp_path / "inputs")
    names = [str(tmp_path / name) for name in ("model", "inputs", "result")]
    subprocess.run([sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{RELOAD}", *names], check=True)
    result = torch.load(tmp_path / "result")
    assert torch.equal(result["out"], model(**inputs).sample)
    for name, value in model.config.items():
        assert name.startswith("_") or result["config"][name] == value or list(value) == result["config"][name]


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_sample_does_not_hear_of_others(layout, tiny_video_transformer):
    model = tiny_video_transformer(attention_layout=layout, cross_attention_dim=12).double()
    frames, times, labels = video(4, 3).double(), torch.tensor([3, 500, 999]), torch.tensor([0, 1, 3])
    text = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    out = model(frames, times, text, mask, labels, num_prefix_frames=2).sample
    for b, length in enumerate((3, 5, 1)):
        one = slice(b, b + 1)
        alone = model(frames[one], times[one], text[one, :length], None, labels[one], num_prefix_frames=2).sample
        torch.testing.assert_close(out[one], alone, rtol=0, atol=1e-10)
    garbage = torch.where(mask[..., None].bool(), text, 1e3 * torch.ones(()).double())
    assert torch.equal(model(frames, times, garbage, mask, labels, num_prefix_frames=2).sample, out)
    assert not torch.allclose(model(frames, times, text, None, labels, num_prefix_frames=2).sample[0], out[0])
    assert not torch.allclose(model(frames, times, text, mask, labels.flip(0), num_prefix_frames=2).sample[0], out[0])
    unlabelled = model(frames, times, text, mask, num_prefix_frames=2).sample  # the last class stands for none
    torch.testing.assert_close(unlabelled[2], out[2], rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_writing_stops_where_the_last_block_has_its_keys(layout, tiny_video_transformer):
    model, calls = tiny_video_transformer(attention_layout=layout), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    cache = model.make_cache(5, 2)
    model(video(1), torch.zeros(2), kv_cache=cache, cache_mode="write")
    assert calls["blocks.0.mlp"] == calls["blocks.1.attn_time.to_k"] == calls["blocks.1.attn_time.to_v"] == 1
    for name in ("blocks.1.mlp", "blocks.1.attn_time.to_q", "blocks.1.attn_time.to_out", "patch_out", "norm_out"):
        assert name not in calls
    cache.commit()
    model(video(2), torch.ones(2), kv_cache=cache, cache_mode="read")
    assert calls["blocks.1.mlp"] == calls["patch_out"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpointing_gives_the_same_gradients(layout, tiny_video_transformer):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_video_transformer(attention_layout=layout).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing == checkpointing
        model(video(4), torch.tensor([5, 700]), num_prefix_frames=2).sample.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_bfloat16_is_close(layout, tiny_video_transformer):
    model, frames, times = tiny_video_transformer(attention_layout=layout), video(5), torch.tensor([7, 800])
    exact = model(frames, times, num_prefix_frames=3).sample
    got = model.bfloat16()(frames.bfloat16(), times, num_prefix_frames=3).sample
    assert got.dtype == torch.bfloat16
    assert 0 < (got.float() - exact).norm() / exact.norm() < 3e-2


@torch.no_grad()
def test_a_mask_of_frames_is_not_taken_for_one_of_samples(tiny_video_transformer):
    """8 sites of 1 video and 8 frames: the network's batch over sites is as long as its mask."""
    model, frames = tiny_video_transformer().double(), video(8, 2).double()
    assert model.sites == 8
    both = model(frames, torch.tensor([300, 4]), num_prefix_frames=3).sample
    alone = model(frames[:1], torch.tensor([300]), num_prefix_frames=3).sample
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-10)


@torch.no_grad()
def test_compiled_says_the_same_and_is_compiled_once_more_for_each_kind_of_call(tiny_video_transformer):
    from torch._dynamo.testing import CompileCounter

    model = tiny_video_transformer(attention_layout="joint").double()
    counter, counts = CompileCounter(), []
    caches = [model.make_cache(3, 2, layout="static") for _ in range(2)]
    networks = [model, torch.compile(model, backend=counter)]
    for chunk in range(5):
        frames = video(2, 1, seed=chunk).double()
        outs = []
        for network, cache in zip(networks, caches, strict=True):
            for level in (900, 300):
                outs.append(network(frames, torch.tensor([level]), kv_cache=cache, cache_mode="read").sample)
                cache.rollback()
            network(frames, torch.tensor([0]), kv_cache=cache, cache_mode="write")
            cache.commit()
        for eager, compiled in zip(outs[:2], outs[2:], strict=True):
            torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-10)
        counts.append(counter.frame_count)
    torch._dynamo.reset()
    assert counts[0] > 0 and counts[1] - counts[0] <= 2 and len(set(counts[1:])) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_mode": "causal"}, "attention_mode must be one of frame_causal, .*, got 'causal'"),
        ({"attention_layout": "both"}, "attention_layout must be one of factorized, joint, got 'both'"),
        ({"pos": "sine"}, "pos must be one of rope, cyclic, got 'sine'"),
        ({"sample_size": 30}, "sample_size must be a side .* multiples of patch_size 4, got 30"),
        ({"sample_size": (16, 8, 4)}, "sample_size must be a side or"),
        ({"sample_size": 0}, "sample_size must be a side or .*, got 0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"attention_head_dim": 15}, "attention_head_dim must be even, got 15"),
        ({"num_attention_heads": 1, "attention_head_dim": 2}, "attention_head_dim must be a multiple of 4, got 2"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"context_frames": 0}, "context_frames must be at least 1, got 0"),
        ({"prefix_references": -1}, "prefix_references must be at least 0, got -1"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"p_empty": 1.5}, r"p_empty must be in \[0, 1\], got 1.5"),
        ({"attention_layout": "joint", "prefix_references": 2}, "prefix_references must be 0 with joint attention"),
    ],
)
def test_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        CausalVideoTransformer3DModel(**settings)


def test_bidirectional_attention_has_no_cache(tiny_video_transformer):
    with pytest.raises(ValueError, match="'full': bidirectional attention cannot be cached"):
        tiny_video_transformer(attention_mode="full").make_cache(5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": torch.zeros(2, 1, 3, 8, 16)}, r"hidden_states must be \(B, 1, T, 16, 8\), T >= 1, got"),
        ({"hidden_states": torch.zeros(2, 1, 16, 8)}, r"hidden_states must be \(B, 1, T, 16, 8\), T >= 1, got"),
        ({"hidden_states": torch.zeros(2, 1, 0, 16, 8)}, r"hidden_states must be .* got \(2, 1, 0, 16, 8\)"),
        ({"timestep": torch.zeros(3)}, r"timestep must be \(2,\) or \(2, 3\), got \(3,\)"),
        ({"class_labels": torch.zeros(3).long()}, r"class_labels must be \(2,\), got shape \(3,\)"),
        ({"encoder_hidden_states": torch.zeros(2, 4, 12)}, "must be None, cross_attention_dim is None, got shape"),
        ({"encoder_attention_mask": torch.ones(2, 4)}, "must be None, without encoder_hidden_states, got shape"),
        ({"num_prefix_frames": 4}, r"num_prefix_frames must be 0 .. 3, got 4"),
        ({"num_prefix_frames": -1}, r"num_prefix_frames must be 0 .. 3, got -1"),
        ({"cache_mode": "append"}, "cache_mode must be one of none, read, write, got 'append'"),
        ({"cache_mode": "read"}, "kv_cache and cache_mode must be given together, got cache_mode='read'"),
        ({"frame_index": torch.arange(2)}, r"frame_index must be \(3,\), got \(2,\)"),
        ({"plan": prefix_plan(2, 1, "frame_causal", 0)}, "plan must be of 3 frames, and without a kv_cache"),
    ],
)
def test_call_errors(changes, message, tiny_video_transformer):
    good: dict[str, Any] = {"hidden_states": video(3), "timestep": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=message):
        tiny_video_transformer()(**{**good, **changes})


def test_call_errors_with_a_cache_leave_it_empty(tiny_video_transformer):
    model = tiny_video_transformer()
    cache = model.make_cache(1, 1)
    for changes, message in [
        ({"num_prefix_frames": 1}, "num_prefix_frames must be 0 with a kv_cache"),
        ({"cache_mode": "none"}, "kv_cache and cache_mode must be given together"),
        ({"plan": prefix_plan(3, 1, "frame_causal", 0)}, "without a kv_cache"),
        ({}, "num_new must be 1 .. 2, behind 0 frames kept, got 3"),
    ]:
        with pytest.raises(ValueError, match=message), torch.no_grad():
            model(video(3), torch.zeros(2), **{"kv_cache": cache, "cache_mode": "write", **changes})
    assert cache.nbytes == 0 and cache.total_written == 0
