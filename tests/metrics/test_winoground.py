"""Winoground scores: by hand, by chance, and by an exact verifier."""

from __future__ import annotations

import pytest
import torch

from gendiff.data.rendered import from_bytes
from gendiff.data.swap_world import SwapWorld, check_swap
from gendiff.metrics.winoground import CHANCE, VerifierScorer, pair_scores, winoground_score

SHARES = ("image", "text", "group")


def shares(*matrices):
    result = winoground_score(torch.tensor(matrices, dtype=torch.float32))
    return tuple(result[name] for name in SHARES)


def swap_pairs():
    """Each common prompt with its swap, and a true picture of each."""
    world = SwapWorld("test")
    common, rare = world.prompts("common"), world.prompts("rare")
    images = {prompt: world.images[world.captions.index(prompt)] for prompt in world.prompts("train")}
    pairs = list(zip(common, rare, strict=True))
    return from_bytes(torch.stack([torch.stack([images[a], images[b]]) for a, b in pairs])), pairs


def test_scores_by_hand():
    assert shares([[2, 1], [1, 2]]) == (1, 1, 1)
    # Image 0 is right for both captions: each image prefers its caption, but caption 1 prefers image 0.
    assert shares([[9, 8], [1, 2]]) == (0, 1, 0)
    # Caption 0 is right for both images.
    assert shares([[9, 1], [8, 2]]) == (1, 0, 0)
    assert shares([[1, 2], [2, 1]]) == (0, 0, 0)
    assert shares([[1, 1], [1, 1]]) == (0, 0, 0)
    assert shares([[2, 1], [1, 2]], [[9, 8], [1, 2]]) == (0.5, 1, 0.5)


def test_chance_is_what_random_scores_get():
    random = torch.rand(20000, 2, 2, generator=torch.Generator().manual_seed(0))
    result = winoground_score(random)
    for name in SHARES:
        # Three standard errors of a share of 20,000.
        assert result[name] == pytest.approx(CHANCE[name], abs=0.01)
        assert result[f"chance_{name}"] == CHANCE[name]


def test_an_exact_verifier_tells_true_pictures_apart():
    images, pairs = swap_pairs()
    matrices = pair_scores(VerifierScorer(check_swap), images, pairs)
    assert matrices.shape == (15, 2, 2)
    # Both shapes are there in every picture; the order decides.
    torch.testing.assert_close(matrices[0], torch.tensor([[1.0, 2 / 3], [2 / 3, 1.0]]))
    result = winoground_score(matrices)
    assert [result[name] for name in SHARES] == [1, 1, 1]


def test_a_generator_that_knows_one_order_tells_nothing_apart():
    images, pairs = swap_pairs()
    result = winoground_score(pair_scores(VerifierScorer(check_swap), images[:, :1].expand_as(images), pairs))
    assert [result[name] for name in SHARES] == [0, 0, 0]


def test_a_scorer_may_look_at_some_nodes():
    images, pairs = swap_pairs()
    scorer = VerifierScorer(check_swap, nodes=["top", "bottom"])
    assert pair_scores(scorer, images, pairs).eq(1).all()
    with pytest.raises(ValueError, match=r"nodes must be checks of the verifier, top, bottom, order; got \['sun'\]"):
        VerifierScorer(check_swap, nodes=["sun"])(images[0], pairs[0])


def test_images_and_texts_may_be_of_different_number():
    images, pairs = swap_pairs()
    scores = VerifierScorer(check_swap, ["order"])(images[0], [*pairs[0], *pairs[1], pairs[0][0]])
    assert scores.tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]]


def test_a_verifier_that_answers_nonsense_is_named():
    def broken(images, prompts):
        return {"node": torch.tensor([1.0, 1.0, torch.nan, 1.0])}

    with pytest.raises(ValueError, match=r"check 'node' must be in \[0, 1\], got nan for candidate 1, prompt 0"):
        VerifierScorer(broken)(torch.zeros(2, 3, 8, 8), ["a", "b"])


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"scores must be \(P, 2, 2\) with at least one pair, got \(0, 2, 2\)"):
        winoground_score(torch.zeros(0, 2, 2))
    scores = torch.zeros(3, 2, 2)
    scores[1, 0, 1] = torch.inf
    with pytest.raises(ValueError, match="scores must be finite, pair 1 has"):
        winoground_score(scores)
    with pytest.raises(ValueError, match="two for each of the 1 captions"):
        pair_scores(VerifierScorer(check_swap), torch.zeros(1, 3, 8, 8), [("a", "b")])
    with pytest.raises(ValueError, match=r"scorer must answer \(2, 2\) for pair 0, got \(2,\)"):
        pair_scores(lambda images, texts: torch.zeros(2), torch.zeros(1, 2, 3, 8, 8), [("a", "b")])
