"""The transformer over stages: its equations, what sees what, and that a cache changes nothing but the cost."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.next_frequency import NextFrequencyTransformer2DModel

C, V, CLASSES = 8, 32, 3
TINY = (1, 2, 3, 4)
TEN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SHIPPED = [(1, 2, 3, 4, 5, 7), (1, 2, 3, 4, 6, 8)]
VARIANTS = [{"qk_norm": norm, "shared_adaln": shared} for norm in (True, False) for shared in (False, True)]
NAMES = [f"qk_norm={v['qk_norm']}-shared={v['shared_adaln']}" for v in VARIANTS]


@pytest.fixture
def make(tiny_next_frequency_pipeline):
    """`make(stages, dtype, **settings)`: 3 classes, C = 8, V = 32, two layers of two heads, no weight near zero."""

    def transformer(stages=TINY, dtype=torch.float32, **settings) -> NextFrequencyTransformer2DModel:
        pipe = tiny_next_frequency_pipeline(side=4 * stages[-1], stages=stages, dtype=dtype, **settings)
        return pipe.transformer

    return transformer


def draw(model: NextFrequencyTransformer2DModel, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs of all stages, and labels with one for "no class" among them."""
    rows = sum(model.counts[1:])
    inputs = torch.randn(2, rows, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return inputs.to(model.dtype), torch.tensor([1, CLASSES])


def logits_of(model: NextFrequencyTransformer2DModel, inputs: Tensor | None, labels: Tensor, **options) -> Tensor:
    return model(inputs, labels, return_dict=False, **options)[0]


def stage_by_stage(model: NextFrequencyTransformer2DModel, inputs: Tensor, labels: Tensor) -> Tensor:
    cache = model.make_cache()
    parts = [None, *inputs.split(model.counts[1:], dim=1)]
    return torch.cat([logits_of(model, part, labels, cache=cache) for part in parts], dim=1)


def by_hand(model: NextFrequencyTransformer2DModel, inputs: Tensor, labels: Tensor) -> Tensor:
    """The equations, one after another, from the weights alone."""
    w = dict(model.named_parameters())
    heads, settings = model.config["num_attention_heads"], model.config
    stages = [k for k, side in enumerate(settings["stages"]) for _ in range(side**2)]
    c = w["condition_embedder.weight"][labels]
    rows = [c[:, None] + w["pos_start"], inputs @ w["word_embed.weight"].T + w["word_embed.bias"]]
    h = torch.cat(rows, dim=1) + w["pos"] + w["lvl_embed.weight"][stages]
    silu = c * c.sigmoid()

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    for i in range(settings["num_layers"]):
        name = f"blocks.{i}."
        if settings["shared_adaln"]:
            six = silu @ w["adaln.weight"].T + w["adaln.bias"]
            six = six.view(-1, 1, 6, model.dim) + w[f"{name}adaln_table"]
        else:
            six = (silu @ w[f"{name}adaln.weight"].T + w[f"{name}adaln.bias"]).view(-1, 1, 6, model.dim)
        g1, g2, s1, s2, b1, b2 = six.unbind(dim=2)
        q, k, v = ((norm(h) * (1 + s1) + b1) @ w[f"{name}attn.to_qkv.weight"].T).chunk(3, dim=-1)
        q, v = q + w[f"{name}attn.q_bias"], v + w[f"{name}attn.v_bias"]  # and none for k
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        if settings["qk_norm"]:
            q = q / q.norm(dim=-1, keepdim=True) * w[f"{name}attn.log_scale"].clamp(max=math.log(100)).exp()
            scores = q @ (k / k.norm(dim=-1, keepdim=True)).transpose(2, 3)
        else:
            scores = q @ k.transpose(2, 3) * 0.25 / math.sqrt(q.shape[-1])
        for query, stage in enumerate(stages):
            for key, other in enumerate(stages):
                if other > stage:
                    scores[:, :, query, key] = -math.inf
        heard = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        h = h + g1 * (heard @ w[f"{name}attn.to_out.weight"].T + w[f"{name}attn.to_out.bias"])
        x = (norm(h) * (1 + s2) + b2) @ w[f"{name}fc1.weight"].T + w[f"{name}fc1.bias"]
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        h = h + g2 * (x @ w[f"{name}fc2.weight"].T + w[f"{name}fc2.bias"])
    s, b = (silu @ w["head_adaln.weight"].T + w["head_adaln.bias"])[:, None].chunk(2, dim=-1)
    return (norm(h) * (1 + s) + b) @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@torch.no_grad()
def test_it_is_the_equations_written_by_hand(make, variant: dict):
    model = make(dtype=torch.float64, **variant)
    for name, weight in model.named_parameters():
        if name.endswith("log_scale"):
            weight[:] = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)  # one below the largest, one above
    inputs, labels = draw(model)
    expected, got = by_hand(model, inputs, labels), logits_of(model, inputs, labels)
    assert expected.std() > 0.5 and got.dtype == torch.float64
    assert (got - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("stages", "variant"), [*((stages, v) for stages in SHIPPED for v in VARIANTS), (TEN, VARIANTS[0])], ids=str
)
@torch.no_grad()
def test_stage_by_stage_equals_one_masked_pass(make, stages, variant: dict, dtype: torch.dtype):
    model = make(stages, dtype, **variant)
    inputs, labels = draw(model)
    whole = logits_of(model, inputs, labels)
    bound = (1e-10 if dtype == torch.float64 else 1e-5) * max(1.0, float(whole.abs().max()))
    assert whole.shape == (2, sum(model.counts), V) and whole.std() > 0.5
    assert (stage_by_stage(model, inputs, labels) - whole).abs().max() <= bound


@pytest.mark.parametrize("stages", SHIPPED, ids=str)
@torch.no_grad()
def test_no_stage_hears_of_later_ones(make, stages):
    model = make(stages)
    inputs, labels = draw(model)
    whole, ends = logits_of(model, inputs, labels), list(accumulate(model.counts))
    for k, (end, count) in enumerate(zip(ends, model.counts, strict=True)):
        if k == 0:
            continue
        changed = inputs.clone()
        changed[:, end - count - model.counts[0] :] += 1  # all that stages k and later read
        other = logits_of(model, changed, labels)
        assert torch.equal(other[:, : end - count], whole[:, : end - count])
        assert (other[:, end - count : end] - whole[:, end - count : end]).abs().amax(dim=(0, 2)).min() > 1e-3
        # A part of the sequence is the beginning of all of it.
        part = logits_of(model, inputs[:, : end - model.counts[0]], labels)
        assert (part - whole[:, :end]).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))
    assert (logits_of(model, None, labels) - whole[:, :1]).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("stages", SHIPPED, ids=str)
@torch.no_grad()
def test_tokens_of_a_stage_move_the_next_and_none_up_to_their_own(tiny_next_frequency_pipeline, stages):
    pipe = tiny_next_frequency_pipeline(side=4 * stages[-1], stages=stages)
    vqvae, model = pipe.vqvae, pipe.transformer
    x = torch.rand(2, 1, 4 * stages[-1], 4 * stages[-1], generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens, labels = vqvae.encode(x).tokens, torch.tensor([0, 2])
    whole, ends = logits_of(model, vqvae.tokens_to_inputs(tokens), labels), list(accumulate(model.counts))
    for j in range(len(stages) - 1):
        changed = [codes.clone() for codes in tokens]
        changed[j] = (changed[j] + 7) % V
        other = logits_of(model, vqvae.tokens_to_inputs(changed), labels)
        assert torch.equal(other[:, : ends[j]], whole[:, : ends[j]])
        assert (other - whole)[:, ends[j] : ends[j + 1]].abs().max() > 0.01
    changed = [*tokens[:-1], (tokens[-1] + 7) % V]
    assert torch.equal(logits_of(model, vqvae.tokens_to_inputs(changed), labels), whole)


@torch.no_grad()
def test_within_a_stage_all_positions_see_each_other(make):
    model = make(SHIPPED[0])
    inputs, labels = draw(model)
    whole, ends = logits_of(model, inputs, labels), [0, *accumulate(model.counts)]
    for k in range(1, len(model.counts)):
        first, last = ends[k], ends[k + 1] - 1
        for moved, watched in ((first, last), (last, first)):
            changed = inputs.clone()
            changed[:, moved - model.counts[0]] += 1
            other = logits_of(model, changed, labels)
            assert (other - whole)[:, watched].abs().max() > 1e-4
            assert torch.equal(other[:, :first], whole[:, :first])


@torch.no_grad()
def test_the_class_is_heard_everywhere_and_only_in_its_own_row(make):
    model = make()
    inputs, _ = draw(model)
    a, b = (logits_of(model, inputs, torch.tensor(labels)) for labels in ([0, 1], [0, 2]))
    assert torch.equal(a[0], b[0]) and (a[1] - b[1]).abs().amax(dim=-1).min() > 1e-3


@torch.no_grad()
def test_labels_are_read_once_by_a_cached_walk(make):
    model = make()
    inputs, labels = draw(model)
    cache = model.make_cache()
    logits_of(model, None, labels, cache=cache)
    second = logits_of(model, inputs[:, :4], torch.tensor([0, 0]), cache=cache)
    whole = logits_of(model, inputs, labels)
    assert (second - whole[:, 1:5]).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))


@torch.no_grad()
def test_a_call_that_fails_leaves_the_cache_as_it_was(make):
    model = make()
    inputs, labels = draw(model)
    whole, cache = logits_of(model, inputs, labels), model.make_cache()
    logits_of(model, None, labels, cache=cache)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    hook = model.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        logits_of(model, inputs[:, :4], labels, cache=cache)
    hook.remove()
    assert cache.length == 1
    second = logits_of(model, inputs[:, :4], labels, cache=cache)
    assert (second - whole[:, 1:5]).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))


def test_two_walks_in_turn_do_not_mix(make):
    model = make()
    walks = [(*draw(model, seed), model.make_cache()) for seed in (3, 4)]
    with torch.no_grad():
        alone = [stage_by_stage(model, inputs, labels) for inputs, labels, _ in walks]
        parts = [[], []]
        for k in range(4):
            for walk, (inputs, labels, cache) in enumerate(walks):
                part = None if k == 0 else inputs.split(model.counts[1:], dim=1)[k - 1]
                parts[walk].append(logits_of(model, part, labels, cache=cache))
    for walk in range(2):
        assert torch.equal(torch.cat(parts[walk], dim=1), alone[walk])


@pytest.mark.parametrize(
    ("depth", "parameters"), [(16, 310_283_520), (20, 600_917_136), (24, 1_033_399_360), (30, 2_010_020_356)]
)
def test_published_sizes(depth: int, parameters: int):
    with torch.device("meta"):
        model = NextFrequencyTransformer2DModel(TEN, 32, 4096, 1000, depth, depth, 64)
    assert sum(p.numel() for p in model.parameters()) == parameters  # 310.28, 600.92, 1 033.40, 2 010.02 M
    # The mask follows from the stages; in a checkpoint it would be 680 x 680 numbers.
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_published_size_with_shared_modulations():
    with torch.device("meta"):
        model = NextFrequencyTransformer2DModel(LARGE, 32, 4096, 1000, 36, 36, 64, shared_adaln=True)
    assert sum(p.numel() for p in model.parameters()) == 2_353_893_904  # 2 353.89 M


def test_first_weights_have_the_stated_sizes():
    torch.manual_seed(0)
    model = NextFrequencyTransformer2DModel((1, 2, 3, 4), C, 256, 10, 4, 4, 32)
    std, dim = math.sqrt(1 / (3 * 128)), 128

    def size(weight: Tensor) -> float:
        return float(weight.detach().std()) / std

    for weight in (model.word_embed.weight, model.condition_embedder.weight, model.lvl_embed.weight, model.pos):
        assert size(weight) == pytest.approx(1, rel=0.1)
    assert size(model.pos_start) == pytest.approx(1, rel=0.3)
    assert size(model.head.weight) == pytest.approx(0.02, rel=0.05)
    assert size(model.head_adaln.weight) == pytest.approx(0.5, rel=0.05)
    for block in model.blocks:
        assert size(block.attn.to_qkv.weight) == pytest.approx(1, rel=0.05)
        assert size(block.fc1.weight) == pytest.approx(1, rel=0.05)
        assert size(block.attn.to_out.weight) == pytest.approx(1 / math.sqrt(8), rel=0.05)
        assert size(block.fc2.weight) == pytest.approx(1 / math.sqrt(8), rel=0.05)
        assert size(block.adaln.weight[: 2 * dim]) == pytest.approx(1e-3, rel=0.05)
        assert size(block.adaln.weight[2 * dim :]) == pytest.approx(0.5, rel=0.05)
        assert float(block.attn.log_scale.exp().detach().mean()) == pytest.approx(4)
    zero = [name for name, p in model.named_parameters() if not p.any()]
    assert zero and all(name.endswith("bias") for name in zero)
    rates = [block.drop_path for block in NextFrequencyTransformer2DModel((1, 2), C, V, 3, 5, 2, 16).blocks]
    assert rates == pytest.approx([0.1 * 5 / 24 * layer / 4 for layer in range(5)])


def tokens_of_four(pipe) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        tokens = pipe.vqvae.encode(x).tokens
        return torch.cat(tokens, dim=1), pipe.vqvae.tokens_to_inputs(tokens), torch.tensor([0, 1, 2, 3])


def test_it_learns_four_images_by_heart(tiny_next_frequency_pipeline):
    tokens, inputs, labels = tokens_of_four(tiny_next_frequency_pipeline())
    torch.manual_seed(0)
    model = NextFrequencyTransformer2DModel(TINY, C, V, CLASSES, 2, 2, 16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(101):
        loss = F.cross_entropy(logits_of(model, inputs, labels).flatten(0, 1), tokens.flatten())
        if step == 0:
            assert loss.item() == pytest.approx(math.log(V), abs=0.1)  # a head near zero says nothing yet
        if step < 100:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_the_first_step_moves_every_weight(tiny_next_frequency_pipeline, variant: dict):
    tokens, inputs, labels = tokens_of_four(tiny_next_frequency_pipeline())
    torch.manual_seed(0)
    model = NextFrequencyTransformer2DModel(TINY, C, V, CLASSES, 2, 2, 16, **variant)
    F.cross_entropy(logits_of(model, inputs, labels).flatten(0, 1), tokens.flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputing_blocks_in_backward_changes_no_gradient(make):
    model = make()
    inputs, labels = draw(model)
    gradients = []
    for again in (False, True):
        model.enable_gradient_checkpointing() if again else model.disable_gradient_checkpointing()
        model.zero_grad()
        logits_of(model, inputs, labels).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_branches_are_dropped_in_training_alone(make):
    model = make(drop_path=0.5)
    inputs, labels = draw(model)
    still = logits_of(model, inputs, labels)
    assert torch.equal(still, logits_of(model, inputs, labels))
    torch.manual_seed(0)
    moving = [logits_of(model.train(), inputs, labels) for _ in range(4)]
    assert any(not torch.equal(a, moving[0]) for a in moving[1:])
    assert torch.equal(logits_of(model.eval(), inputs, labels), still)


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@torch.no_grad()
def test_it_loads_as_it_was_saved(make, variant: dict, tmp_path):
    model = make(**variant)
    model.save_pretrained(tmp_path)
    loaded = NextFrequencyTransformer2DModel.from_pretrained(tmp_path).eval()
    saved, found = model.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys() and all(torch.equal(saved[name], found[name]) for name in saved)
    assert torch.equal(logits_of(loaded, *draw(model)), logits_of(model, *draw(model)))
    assert loaded.config["stages"] == [1, 2, 3, 4]


@torch.no_grad()
def test_half_the_weights_give_full_logits(make):
    model = make(dtype=torch.bfloat16)
    inputs, labels = draw(model)
    whole, cached = logits_of(model, inputs, labels), stage_by_stage(model, inputs, labels)
    assert whole.dtype == cached.dtype == torch.float32 and whole.isfinite().all()
    assert (whole - cached).abs().max() <= 0.1 * whole.abs().max()


BAD_CONFIGS = [
    ({"stages": (1, 3, 2)}, r"stages must be positive whole numbers that never decrease, got \[1, 3, 2\]"),
    ({"stages": ()}, "stages must be positive whole numbers"),
    ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD_CONFIGS)
def test_a_bad_config_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        NextFrequencyTransformer2DModel(**options)


LABELS = torch.tensor([0, 1])
BAD_CALLS = [
    (torch.zeros(2, 5, C), LABELS, r"rows of whole stages, one of \[0, 4, 13, 29\], got 5"),
    (torch.zeros(2, 4, C + 1), LABELS, r"inputs must be \(2, rows, 8\), got \(2, 4, 9\)"),
    (torch.zeros(3, 4, C), LABELS, r"inputs must be \(2, rows, 8\), got \(3, 4, 8\)"),
    (torch.zeros(4, C), LABELS, r"inputs must be \(2, rows, 8\), got \(4, 8\)"),
    (None, torch.tensor(1), r"class_labels must be \(B,\), got \(\)"),
    (None, torch.zeros(2, 1, dtype=torch.int64), r"class_labels must be \(B,\), got \(2, 1\)"),
]


@pytest.mark.parametrize(("inputs", "labels", "message"), BAD_CALLS)
def test_a_bad_call_is_named_before_any_work(make, inputs: Tensor | None, labels: Tensor, message: str):
    model = make()
    model.blocks[0].register_forward_pre_hook(lambda *_: pytest.fail("a block ran"))
    for cache in (None, model.make_cache()):
        if cache is not None and "whole stages" in message:
            continue
        with pytest.raises(ValueError, match=message):
            model(inputs, labels, cache=cache)


@torch.no_grad()
def test_a_walk_takes_its_stages_in_order_and_ends(make):
    model = make()
    inputs, labels = draw(model)
    cache = model.make_cache()
    with pytest.raises(ValueError, match="inputs of stage 0 must have None rows, got 4"):
        model(inputs[:, :4], labels, cache=cache)
    model(None, labels, cache=cache)
    for wrong, got in ((None, "None"), (inputs[:, :9], "9")):
        with pytest.raises(ValueError, match=f"inputs of stage 1 must have 4 rows, got {got}"):
            model(wrong, labels, cache=cache)
    for part in inputs.split(model.counts[1:], dim=1):
        model(part, labels, cache=cache)
    with pytest.raises(ValueError, match="the cache holds all 4 stages already; a new call needs a new cache"):
        model(inputs[:, :4], labels, cache=cache)
