"""The network that says what a prompt needs."""

from __future__ import annotations

import json

import pytest
import torch

from gendiff.causal.scene_features import FEATURES
from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.causal.scene_node import Edge, Node
from gendiff.models.lina_graph_encoder import NUM_NODE_FEATURES, packed_graph
from gendiff.models.lina_predictor import GRAPH_SCALES, LINAPredictor
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention

BOX = ActionBox(("side", "light"), lam_max=4.0)
BATCH, LENGTH, DIM, NODES = 5, 7, 12, 6


def predictor(seed: int = 0, trained: bool = True, **arguments) -> LINAPredictor:
    torch.manual_seed(seed)
    model = LINAPredictor(DIM, BOX.to_dict(), base_model="tiny", **arguments).eval()
    if trained:
        torch.nn.init.normal_(model.out.weight, std=0.3)
        torch.nn.init.normal_(model.out.bias, std=0.3)
    return model


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(BATCH, LENGTH, DIM, generator=generator)
    mask = torch.arange(LENGTH) < torch.tensor([[7], [5], [3], [1], [4]])
    graph = torch.randint(0, 10, (BATCH, 16), generator=generator).float()
    return embeds, mask, graph, torch.randn(BATCH, 3, generator=generator)


def graphs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    packed = torch.zeros(BATCH, NODES, NUM_NODE_FEATURES + NODES)
    for row in range(BATCH):
        for node in range(row + 1):
            packed[row, node, torch.randint(0, 6, (1,), generator=generator)] = 1
            packed[row, node, NUM_NODE_FEATURES : NUM_NODE_FEATURES + node] = 1
    return packed


def test_untrained_it_says_exactly_the_identity():
    embeds, mask, graph, probe = inputs()
    said = predictor(trained=False)(embeds, mask, graph, probe)
    assert torch.equal(said.action, torch.zeros(BATCH, 6))
    assert torch.equal(said.gate_logits, torch.full((BATCH,), -2.0))
    assert not said.gate.any()
    action, logits = said
    for y, logit in zip(action, logits, strict=True):
        found = BOX.intervention(y, open=bool(logit.sigmoid() > 0.5))
        assert found == Intervention(gate=False)
        assert BOX.intervention(y, open=True) == Intervention()


@pytest.mark.parametrize("graph_encoder", [False, True])
def test_what_was_saved_says_the_same_bits(tmp_path, graph_encoder):
    model = predictor(hidden_dim=24, side_dim=8, graph_encoder=graph_encoder)
    embeds, mask, graph, probe = inputs()
    graph = graphs() if graph_encoder else graph
    model.save_pretrained(tmp_path)
    loaded = LINAPredictor.from_pretrained(tmp_path)
    for first, second in zip(model(embeds, mask, graph, probe), loaded(embeds, mask, graph, probe), strict=True):
        assert torch.equal(first, second)
    assert loaded.factors == ["side", "light"]
    assert ActionBox.from_dict(loaded.config["box"]) == BOX
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["base_model"], config["embed_dim"], config["box"]["lam_max"]) == ("tiny", DIM, 4.0)


def test_padding_is_not_read_and_all_else_is():
    model, (embeds, mask, graph, probe) = predictor(), inputs()
    said = model(embeds, mask, graph, probe)
    other = torch.where(mask.unsqueeze(-1), embeds, torch.full_like(embeds, 7.0))
    torch.testing.assert_close(model(other, mask, graph, probe), said)
    for changed in ((embeds + torch.linspace(0, 1, DIM), mask, graph, probe), (embeds, mask, graph + 1, probe)):
        assert not torch.allclose(model(*changed).action, said.action, atol=1e-4)
    assert not torch.allclose(model(embeds, mask, graph, probe + 1).action, said.action, atol=1e-4)


def test_no_probe_is_a_probe_of_zeros():
    model, (embeds, mask, graph, _) = predictor(), inputs()
    without, zeros = model(embeds, mask, graph), model(embeds, mask, graph, torch.zeros(BATCH, 3))
    assert torch.equal(without.action, zeros.action) and torch.equal(without.gate_logits, zeros.gate_logits)


def test_rows_do_not_depend_on_their_batch():
    model, (embeds, mask, graph, probe) = predictor(), inputs()
    said = model(embeds, mask, graph, probe).action
    for row in range(BATCH):
        at = slice(row, row + 1)
        torch.testing.assert_close(model(embeds[at], mask[at], graph[at], probe[at]).action, said[at])


def test_half_precision_embeddings_are_read_in_the_predictors_precision():
    model, (embeds, mask, graph, probe) = predictor(), inputs()
    said = model(embeds.bfloat16(), mask, graph, probe).action
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, model(embeds, mask, graph, probe).action, atol=0.02, rtol=0)


def test_large_counts_do_not_saturate_the_graph_branch():
    model, (embeds, mask, graph, _) = predictor(), inputs()
    few, many = model(embeds, mask, torch.full_like(graph, 9.0)), model(embeds, mask, torch.full_like(graph, 10.0))
    assert (few.action - many.action).abs().max() > 1e-4


def test_the_graph_encoder_knows_no_order_of_nodes():
    model, (embeds, mask, _, _) = predictor(graph_encoder=True), inputs()
    packed, order = graphs(), torch.tensor([3, 0, 5, 1, 4, 2])
    features, causes = packed[..., :NUM_NODE_FEATURES], packed[..., NUM_NODE_FEATURES:]
    mixed = torch.cat([features[:, order], causes[:, order][:, :, order]], dim=-1)
    torch.testing.assert_close(model(embeds, mask, mixed).action, model(embeds, mask, packed).action)
    turned = torch.cat([features, causes.transpose(1, 2)], dim=-1)
    assert not torch.allclose(model(embeds, mask, turned).action, model(embeds, mask, packed).action, atol=1e-5)


MIRROR = CausalSceneGraph(
    [
        Node("ball", "object", "a ball"),
        Node("reflection", "effect", "the mirror shows the ball", explicit=False, effect="reflection"),
        Node("mirror", "object", "a mirror"),
    ],
    [Edge("ball", "reflection"), Edge("mirror", "reflection")],
)


def test_a_packed_graph_says_kinds_hops_and_causes():
    packed = packed_graph(MIRROR, max_nodes=4)
    expected = torch.zeros(4, NUM_NODE_FEATURES + 4)
    expected[0, [0, 14]] = expected[1, [0, 14]] = 1
    expected[2, [5, 7, 15, 17, 18]] = 1
    assert torch.equal(packed, expected)
    with pytest.raises(ValueError, match="at most max_nodes = 2 nodes, got 3"):
        packed_graph(MIRROR, max_nodes=2)


def test_the_features_of_a_scene_graph_fit_the_predictor():
    graph = MIRROR.features()[None]
    said = predictor()(torch.randn(1, 3, DIM), torch.ones(1, 3, dtype=torch.bool), graph)
    assert graph.shape[1] == len(GRAPH_SCALES) == len(FEATURES)
    assert said.action.shape == (1, 6) and said.action.isfinite().all()


def test_bad_input_is_named():
    model, (embeds, mask, graph, probe) = predictor(), inputs()
    with pytest.raises(ValueError, match=r"made for tiny with D = 12; got D = 9 in shape \(5, 7, 9\)"):
        model(embeds[..., :9], mask, graph)
    with pytest.raises(ValueError, match=r"mask must be \(B, L\) = \(5, 7\), got \(5, 6\)"):
        model(embeds, mask[:, :6], graph)
    with pytest.raises(ValueError, match=r"graph must be \(B, 16\) = \(5, 16\), got \(5, 15\)"):
        model(embeds, mask, graph[:, :15])
    with pytest.raises(ValueError, match=r"probe must be \(B, 3\) = \(5, 3\), got \(4, 3\)"):
        model(embeds, mask, graph, probe[:4])
    with pytest.raises(ValueError, match=r"packed graphs \(B, M, 17 \+ M\) with B = 5, got \(5, 16\)"):
        predictor(graph_encoder=True)(embeds, mask, graph)
    with pytest.raises(ValueError, match="embed_dim must be at least 1, got 0"):
        LINAPredictor(0, BOX.to_dict())
    with pytest.raises(ValueError, match=r"box\['factors'\] must be a list of names that differ, got \['a', 'a'\]"):
        LINAPredictor(4, {"factors": ["a", "a"]})


def test_a_predictor_that_does_not_read_the_prompt_depends_on_the_graph_alone():
    torch.manual_seed(0)
    predictor = LINAPredictor(8, ActionBox(("side",)).to_dict(), reads_prompt=False)
    torch.nn.init.normal_(predictor.out.weight)
    mask, graph = torch.ones(3, 4, dtype=torch.bool), torch.rand(3, 16)
    first, second = (predictor(torch.randn(3, 4, 8), mask, graph) for _ in range(2))
    assert torch.equal(first.action, second.action) and torch.equal(first.gate_logits, second.gate_logits)
    assert not torch.equal(first.action, predictor(torch.randn(3, 4, 8), mask, graph + 1).action)
