from __future__ import annotations

import pytest
import torch
from diffusers.models import attention_dispatch
from torch.nn.functional import scaled_dot_product_attention

from gendiff.nn import attention
from gendiff.nn.attention import DispatchedAttention, MultiHeadAttention


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def heads(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2)


@pytest.mark.parametrize("shape", ["none", "(Tq, Tk)", "(N, 1, 1, Tk)"])
@pytest.mark.parametrize("batch", [3, 5])
def test_equals_torch(shape, batch):
    # With as many queries as samples, a mask (Tq, Tk) must not be taken for one of padding, (N, Tk).
    q, k, v = draw(batch, 5, 2, 8), draw(batch, 7, 2, 8, seed=1), draw(batch, 7, 2, 8, seed=2)
    mask = {"none": None, "(Tq, Tk)": draw(5, 7, seed=3) > 0, "(N, 1, 1, Tk)": draw(batch, 1, 1, 7, seed=3) > 0}[shape]
    if mask is not None:
        mask[..., 0] = True
    got = MultiHeadAttention(16, 2).attend(q, k, v, mask)
    expected = heads(scaled_dot_product_attention(*map(heads, (q, k, v)), attn_mask=mask)).flatten(2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_projections_split_into_heads():
    torch.manual_seed(0)
    attn, x, context = MultiHeadAttention(16, 2, context_dim=12), draw(2, 3, 16), draw(2, 4, 12, seed=1)
    k, v = attn.keys_values(context)
    assert torch.equal(attn.queries(x).flatten(2), attn.to_q(x))
    assert torch.equal(k.flatten(2), attn.to_k(context)) and torch.equal(v.flatten(2), attn.to_v(context))
    assert k.shape == (2, 4, 2, 8)


def test_qk_norm_is_of_each_head_and_leaves_values():
    torch.manual_seed(0)
    attn, x = MultiHeadAttention(16, 2, qk_norm=True), 30 * draw(2, 3, 16)
    k, v = attn.keys_values(x)
    ones = torch.ones(2, 3, 2)
    torch.testing.assert_close(k.pow(2).mean(-1), ones, rtol=0, atol=1e-4)
    torch.testing.assert_close(attn.queries(x).pow(2).mean(-1), ones, rtol=0, atol=1e-4)
    assert torch.equal(v.flatten(2), attn.to_v(x))


@pytest.fixture
def calls(monkeypatch):
    """What each call hands to the dispatcher: dtype and backend."""
    made = []

    def spy(q, k, v, **arguments):
        made.append((q.dtype, arguments["backend"]))
        return attention_dispatch.dispatch_attention_fn(q, k, v, **arguments)

    monkeypatch.setattr(attention, "dispatch_attention_fn", spy)
    return made


def test_training_in_bfloat16_on_a_cpu_attends_in_float32(calls):
    q = draw(2, 3, 2, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = DispatchedAttention()(q, q, q, None)
        assert torch.is_autocast_enabled("cpu")
        with torch.no_grad():
            DispatchedAttention()(q, q, q, None)
    DispatchedAttention()(q, q, q, None)
    assert [dtype for dtype, _ in calls] == [torch.float32, torch.bfloat16, torch.bfloat16]
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.bfloat16 and q.grad.isfinite().all()
    with torch.no_grad():
        expected = scaled_dot_product_attention(*[heads(q.float())] * 3)
    torch.testing.assert_close(out, heads(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["factorized", "joint"])
def test_backend_switch_reaches_every_layer(layout, calls, tiny_video_transformer):
    registry = attention_dispatch._AttentionBackendRegistry
    before = registry.get_active_backend()[0]
    model = tiny_video_transformer(attention_layout=layout, cross_attention_dim=12)
    frames, times, text = draw(1, 1, 3, 16, 8), torch.tensor([5]), draw(1, 4, 12)
    try:
        model.set_attention_backend("_native_math")
        with torch.no_grad():
            model(frames, times, encoder_hidden_states=text, num_prefix_frames=1)
    finally:
        registry.set_active_backend(before)
    assert len(calls) >= 2 * (2 if layout == "joint" else 3)
    assert {backend.value for _, backend in calls} == {"_native_math"}
