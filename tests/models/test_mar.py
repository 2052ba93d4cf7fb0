"""MAR: what it computes, and that light passes say what they must, against a reference that goes row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mar_reference import Reference

from gendiff.models.masked.mar import MARTransformer2DModel
from gendiff.samplers.token_diffusion import sample_tokens

N, P, C = 16, 4, 10
LABELS = torch.tensor([1, 7, C])


def make(dtype: torch.dtype = torch.float64, **options) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
    }
    settings |= {"token_channels": 3, "num_buffer_rows": P, "head_width": 16, "head_layers": 2}
    model: Any = MARTransformer2DModel(4, **settings | options)
    for parameter in model.parameters():  # those that start at zero as well
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def order():
    return torch.rand(3, N, generator=torch.Generator().manual_seed(1)).argsort(dim=1)


@pytest.fixture(scope="module")
def tokens():
    return torch.randn(3, N, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def hidden_after(order: torch.Tensor, known: tuple[int, ...]) -> torch.Tensor:
    """All hidden but the first so many of each image's order."""
    ranks = order.argsort(dim=1)
    return ranks >= torch.tensor(known)[:, None]


def group_of(order: torch.Tensor, known: tuple[int, ...], size: int) -> torch.Tensor:
    """The next `size` of each image's order."""
    return torch.stack([row[start : start + size] for row, start in zip(order, known, strict=True)])


def at(z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return z.gather(1, rows[..., None].expand(-1, -1, z.shape[2]))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


CASES = pytest.mark.parametrize("known", [(5, 5, 5), (0, 0, 0), (6, 2, 0)], ids=["even", "nothing", "ragged"])
PREFIX = pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no-prefix"])
LAYOUT = pytest.mark.parametrize("layout", ["in_place", "concat"])


@CASES
def test_a_full_pass_follows_the_equations(model, tokens, order, known):
    hidden = hidden_after(order, known)
    z = model(tokens, hidden, LABELS).sample
    assert z.shape == (3, N, 16)
    for b in range(3):
        assert close(z[b], Reference(model).full(tokens[b], hidden[b], int(LABELS[b])))


def test_values_at_hidden_places_mean_nothing_and_known_ones_do(model, tokens, order):
    hidden = hidden_after(order, (4, 4, 4))
    z = model(tokens, hidden, LABELS).sample
    assert torch.equal(model(torch.where(hidden[..., None], 9.0, tokens), hidden, LABELS).sample, z)
    assert not close(model(tokens + 0.1, hidden, LABELS).sample, z, 1e-3)
    assert not close(model(tokens, hidden, LABELS.roll(1)).sample, z, 1e-3)


def test_an_image_is_computed_alike_alone_and_among_ones_with_other_counts(model, tokens, order):
    hidden = hidden_after(order, (9, 0, 3))
    z = model(tokens, hidden, LABELS).sample
    for b in range(3):
        alone = model(tokens[b : b + 1], hidden[b : b + 1], LABELS[b : b + 1]).sample
        assert close(z[b : b + 1], alone)


@CASES
@PREFIX
@LAYOUT
def test_a_light_pass_with_nothing_new_repeats_the_full_one(model, tokens, order, known, prefix, layout):
    hidden, rows = hidden_after(order, known), group_of(order, known, 6)
    cache = model.make_cache(prefix, layout)
    full = model(tokens, hidden, LABELS, cache).sample
    light = model(tokens, hidden, LABELS, cache, rows).sample
    assert close(light, at(full, rows))


@CASES
@PREFIX
def test_a_light_pass_follows_the_equations_with_stale_rows_from_the_full_one(model, tokens, order, known, prefix):
    rows, cache = group_of(order, known, 5), model.make_cache(prefix)
    model(tokens, hidden_after(order, known), LABELS, cache)
    references = [Reference(model) for _ in range(3)]
    for b, reference in enumerate(references):
        reference.full(tokens[b], hidden_after(order, known)[b], int(LABELS[b]))
    for revealed in ((1, 2, 1), (3, 3, 3), (4, 2, 5)):
        hidden = hidden_after(order, tuple(a + b for a, b in zip(known, revealed, strict=True)))
        light = model(tokens, hidden, LABELS, cache, rows).sample
        for b, reference in enumerate(references):
            expected = reference.light(tokens[b], hidden[b], int(LABELS[b]), rows[b].tolist(), prefix)
            assert close(light[b], expected)


@PREFIX
def test_groups_of_different_sizes_are_padded(model, tokens, order, prefix):
    known, sizes = (5, 2, 0), (2, 5, 1)
    rows = group_of(order, known, 5)
    rows[torch.arange(5) >= torch.tensor(sizes)[:, None]] = -1
    hidden, later = hidden_after(order, known), hidden_after(order, (6, 5, 0))
    cache = model.make_cache(prefix)
    model(tokens, hidden, LABELS, cache)
    light = model(tokens, later, LABELS, cache, rows).sample
    for b, size in enumerate(sizes):
        one = slice(b, b + 1)
        own = model.make_cache(prefix)
        model(tokens[one], hidden[one], LABELS[one], own)
        alone = model(tokens[one], later[one], LABELS[one], own, rows[one, :size]).sample
        assert close(light[one, :size], alone)


def test_a_group_of_all_tokens_leaves_nothing_stale(model, tokens, order):
    cache = model.make_cache()
    model(tokens, hidden_after(order, (0, 0, 0)), LABELS, cache)
    for known in ((2, 2, 2), (7, 7, 7), (3, 9, 15)):
        hidden = hidden_after(order, known)
        light = model(tokens, hidden, LABELS, cache, order).sample
        assert close(light, at(model(tokens, hidden, LABELS).sample, order))


@PREFIX
def test_staleness_is_real(model, tokens, order, prefix):
    known, rows = (5, 5, 5), group_of(order, (5, 5, 5), 6)
    cache = model.make_cache(prefix)
    before = at(model(tokens, hidden_after(order, known), LABELS, cache).sample, rows)
    hidden = hidden_after(order, (8, 8, 8))
    light = model(tokens, hidden, LABELS, cache, rows).sample
    full = at(model(tokens, hidden, LABELS).sample, rows)
    assert 1e-6 < (light - full).abs().max() < 2 * (before - full).abs().max()
    assert not close(light, before, 1e-3)


@PREFIX
def test_both_layouts_say_the_same_and_the_order_of_rows_is_that_of_the_result(model, tokens, order, prefix):
    known, rows = (5, 5, 5), group_of(order, (5, 5, 5), 6)
    said = {}
    for layout in ("in_place", "concat"):
        cache = model.make_cache(prefix, layout)
        model(tokens, hidden_after(order, known), LABELS, cache)
        hidden = hidden_after(order, (7, 7, 7))
        said[layout] = model(tokens, hidden, LABELS, cache, rows).sample
        flipped = model(tokens, hidden, LABELS, cache, rows.flip(1)).sample
        assert close(flipped.flip(1), said[layout])
    assert close(said["in_place"], said["concat"])


@PREFIX
def test_light_passes_leave_the_context_as_it_was(model, tokens, order, prefix):
    known, rows = (6, 2, 0), group_of(order, (6, 2, 0), 5)
    cache = model.make_cache(prefix)
    model(tokens, hidden_after(order, known), LABELS, cache)

    def stored():
        parts = (cache.encoder.keys_values, cache.decoder.keys_values)
        return [[[t.clone() for t in part.read(layer)] for layer in range(2)] for part in parts]

    before = stored()
    hidden = hidden_after(order, (8, 5, 1))
    first = model(tokens, hidden, LABELS, cache, rows).sample
    model(tokens, hidden_after(order, (10, 6, 4)), LABELS, cache, rows)
    after = stored()
    assert all(torch.equal(a, b) for x, y in zip(before[0], after[0], strict=True) for a, b in zip(x, y, strict=True))
    outside = torch.ones(3, P + N, dtype=torch.bool).scatter(1, P + rows, False)
    outside[:, :P] &= not prefix
    for x, y in zip(before[1], after[1], strict=True):
        for a, b in zip(x, y, strict=True):
            assert torch.equal(a.transpose(1, 2)[outside], b.transpose(1, 2)[outside])
            assert not torch.equal(a, b)
    assert torch.equal(model(tokens, hidden, LABELS, cache, rows).sample, first), "no trace of the pass between"


def test_a_cache_is_filled_anew_by_every_full_pass(model, tokens, order):
    cache = model.make_cache()
    for known in ((6, 2, 0), (3, 3, 3), (9, 9, 9)):
        hidden, rows = hidden_after(order, known), group_of(order, known, 4)
        full = model(tokens, hidden, LABELS, cache).sample
        assert close(full, model(tokens, hidden, LABELS).sample, 0)
        assert close(model(tokens, hidden, LABELS, cache, rows).sample, at(full, rows))


def test_rows_computed_are_the_visible_ones_and_in_light_passes_the_new_ones(model, tokens, order):
    seen: list[tuple[str, int]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0].shape[1])))
        for name, block in (("encoder", model.encoder_blocks[0]), ("decoder", model.decoder_blocks[0]))
    ]
    known, rows = (5, 5, 5), group_of(order, (5, 5, 5), 6)
    later = hidden_after(order, (7, 7, 7))
    for prefix, extra in ((True, P), (False, 0)):
        cache = model.make_cache(prefix)
        for hidden, group in ((hidden_after(order, known), None), (hidden_after(order, known), rows), (later, rows)):
            seen.clear()
            new = model.cost_key(hidden, group)
            model(tokens, hidden, LABELS, cache, group)
            first = P + new if group is None else extra + new
            assert new == (5 if group is None else 0 if hidden is not later else 2)
            expected = [("encoder", first)] if first else []  # no row, no call
            assert seen == [*expected, ("decoder", P + N if group is None else extra + 6)]
    for hook in hooks:
        hook.remove()


def test_guidance_has_a_cache_for_each_branch_and_draws_the_same_from_light_passes_as_from_full_ones(
    model, tokens, order
):
    hidden, rows = hidden_after(order, (5, 5, 5)), group_of(order, (5, 5, 5), 4)
    said = []
    for labels in (torch.tensor([1, 7, 3]), torch.full((3,), model.null_class)):
        cache = model.make_cache()
        full = at(model(tokens, hidden, labels, cache).sample, rows)
        said.append((full, model(tokens, hidden, labels, cache, rows).sample))
    (full, light), (full_none, light_none) = said
    assert not close(full, full_none, 1e-3)
    model.head.token_range = 3.0
    drawn = [
        sample_tokens(model.head, z, none, 2.0, 8, generator=torch.Generator().manual_seed(4))
        for z, none in ((full, full_none), (light, light_none), (full, full))
    ]
    model.head.token_range = None
    assert close(drawn[1], drawn[0], 1e-8)
    assert not close(drawn[2], drawn[0], 1e-4)


def test_lower_precision_changes_little(tokens, order):
    hidden, rows = hidden_after(order, (6, 2, 0)), group_of(order, (6, 2, 0), 4)
    exact, single = make(), make(torch.float32)
    cache, rounded = single.make_cache(), exact.make_cache(dtype=torch.bfloat16)
    z = exact(tokens, hidden, LABELS).sample
    assert close(single(tokens, hidden, LABELS, cache).sample.double(), z, 1e-5)
    assert close(single(tokens, hidden, LABELS, cache, rows).sample.double(), at(z, rows), 1e-5)
    exact(tokens, hidden, LABELS, rounded)
    light = exact(tokens, hidden, LABELS, rounded, rows).sample
    assert light.dtype == torch.float64 and close(light, at(z, rows), 0.05) and not close(light, at(z, rows), 1e-6)
    half = make(torch.bfloat16)
    said = half(tokens, hidden, LABELS).sample
    assert said.dtype == torch.bfloat16 and close(said.double(), z, 0.1)


def test_a_cache_tells_its_size(model, tokens, order):
    cache = model.make_cache()
    assert cache.nbytes == 0 and not cache.filled
    model(tokens, hidden_after(order, (5, 5, 5)), LABELS, cache)
    assert cache.nbytes == 2 * 4 * 3 * (P + N) * 16 * 8  # keys and values, layers, images, rows, width, bytes
    assert cache.cost_key == (P + 5, P + N, True)


def test_training_drops_hidden_rows_and_gradients_reach_every_weight_of_the_backbone(order, tokens):
    model = make(torch.float32, dropout=0.1).requires_grad_(True).train()
    z = model(tokens.float(), hidden_after(order, (5, 5, 5)), LABELS).sample
    (z**2).mean().backward()
    silent = [
        name
        for name, p in model.named_parameters()
        if not name.startswith("head.") and (p.grad is None or not p.grad.abs().sum())
    ]
    assert not silent


def test_saved_and_loaded_it_says_the_same(tokens, order, tmp_path):
    model = make(torch.float32, token_range=2.5)
    model.save_pretrained(tmp_path)
    again = MARTransformer2DModel.from_pretrained(tmp_path).eval()
    hidden = hidden_after(order, (6, 2, 0))
    assert torch.equal(again(tokens, hidden, LABELS).sample, model(tokens, hidden, LABELS).sample)
    assert again.head.token_range == 2.5
    x, t = torch.randn(5, 3), torch.arange(5)
    assert torch.equal(again.head(x, t, torch.ones(5, 16)), model.head(x, t, torch.ones(5, 16)))


def test_published_sizes_have_the_published_parameters():
    sizes = {"base": (12, 12, 768, 6, 1024), "large": (16, 16, 1024, 8, 1280), "huge": (20, 16, 1280, 12, 1536)}
    counts = []
    for layers, heads, width, head_layers, head_width in sizes.values():
        with torch.device("meta"):
            model = MARTransformer2DModel(
                16,
                16,
                1000,
                layers,
                layers,
                heads,
                width // heads,
                num_buffer_rows=64,
                head_width=head_width,
                head_layers=head_layers,
            )
        counts.append(math.ceil(sum(p.numel() for p in model.parameters()) / 1e6))
    assert counts == [208, 479, 943]  # millions, as its authors list them, rounded up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_buffer_rows": 0}, "num_buffer_rows must be a whole number of at least 1, got 0"),
        ({"num_encoder_layers": 0}, "num_encoder_layers must be a whole number of at least 1, got 0"),
        ({"head_width": 1.5}, r"head_width must be a whole number of at least 1, got 1\.5"),
        ({"token_range": -1.0}, r"token_range must be above 0, got -1\.0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_calls_are_refused(model, tokens, order):
    hidden, rows = hidden_after(order, (5, 5, 5)), group_of(order, (5, 5, 5), 2)
    for arguments, message in (
        ((tokens[..., :2], hidden, LABELS), r"tokens must be \(B, 16, 3\), got \(3, 16, 2\)"),
        ((tokens[..., 0], hidden, LABELS), r"tokens must be \(B, 16, 3\), got \(3, 16\)"),
        ((tokens, hidden.long(), LABELS), r"hidden must be \(3, 16\) bool"),
        ((tokens, hidden, LABELS[:2]), r"class_labels must be \(3,\), got \(2,\)"),
        ((tokens, hidden, LABELS, None, rows), "rows need a cache that a full pass has filled"),
        ((tokens, hidden, LABELS, model.make_cache(), rows), "rows need a cache that a full pass has filled"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)
