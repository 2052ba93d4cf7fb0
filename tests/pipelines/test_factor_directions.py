"""Directions of factors in the prompt embedding, on an encoder whose directions are known."""

from __future__ import annotations

import pytest
import torch

from gendiff.pipelines.factor_directions import FactorDirections

LENGTH, DIM = 8, 24
WORDS = [
    "a",
    "sun",
    "left",
    "right",
    "matte",
    "glossy",
    "wood",
    "metal",
    "tall",
    "short",
    "big",
    "shadow",
    "lit",
    "dark",
]
TABLE = torch.randn(len(WORDS) + 1, DIM, generator=torch.Generator().manual_seed(0))
SHIFT = torch.randn(DIM, generator=torch.Generator().manual_seed(1))


def encode(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear encoder with a BOS token: a word stands in its place, and "matte" leaks into every token behind it."""
    embeds, mask = torch.randn(1, 1, DIM, generator=torch.Generator().manual_seed(2)).repeat(len(texts), LENGTH, 1), []
    for row, text in enumerate(texts):
        ids = [WORDS.index(word) for word in text.split()]
        for place, index in enumerate(ids, start=1):
            embeds[row, place] = TABLE[index] + 0.2 * place
            if "matte" in text:
                embeds[row, place] += SHIFT
        mask.append([place <= len(ids) for place in range(LENGTH)])
    valid = torch.tensor(mask)
    return embeds, valid, (embeds * valid.unsqueeze(-1)).sum(1)


PAIRS = {
    "side": [(f"{size} sun left", f"{size} sun right") for size in ("tall", "short", "big", "a")],
    "light": [(f"{size} shadow lit", f"{size} shadow dark") for size in ("tall", "short", "big", "a")],
}
TEXTURES = [("matte wood sun", "glossy wood sun"), ("a wood sun", "a metal sun")]


def fitted(**arguments) -> FactorDirections:
    return FactorDirections.fit(encode, PAIRS, **arguments)


def test_a_direction_is_the_difference_of_the_words_at_rms_one():
    directions = fitted().directions["side"]
    expected = TABLE[WORDS.index("left")] - TABLE[WORDS.index("right")]
    assert torch.equal(directions[[0, 1, 2, 4, 5, 6, 7]], torch.zeros(7, DIM))
    torch.testing.assert_close(directions[3] / directions[3].norm(), expected / expected.norm())
    assert directions[1:4].square().mean().sqrt() == pytest.approx(1, abs=1e-6)


def test_texts_of_different_length_get_one_direction_for_all_tokens():
    pairs = {"side": [("sun left", "a sun right"), ("tall sun left", "sun right")]}
    found = FactorDirections.fit(encode, pairs)
    assert found.directions["side"].shape == (DIM,)
    with pytest.raises(ValueError, match=r"'side' must have equally many tokens.*\[3, 4\].*'mean'"):
        FactorDirections.fit(encode, pairs, positions="tokens")


@pytest.mark.parametrize("positions", ["tokens", "mean"])
def test_no_direction_has_a_texture_component(positions):
    pairs = {**PAIRS, "finish": [("matte sun left", "glossy sun right"), ("matte sun lit", "glossy sun dark")]}
    found = FactorDirections.fit(encode, pairs, TEXTURES, positions=positions, energy=1.0)
    assert 1 <= found.texture.shape[1] <= 8
    torch.testing.assert_close(found.texture.T @ found.texture, torch.eye(found.texture.shape[1]), atol=1e-6, rtol=0)
    plain = FactorDirections.fit(encode, pairs, positions=positions)
    assert (plain.directions["finish"] @ found.texture).abs().max() > 0.1
    for direction in found.directions.values():
        assert (direction @ found.texture).abs().max() / direction.norm() < 1e-6


def test_the_texture_basis_is_no_larger_than_the_energy_asks_for():
    small = fitted(texture_pairs=TEXTURES, energy=0.3).texture.shape[1]
    large = fitted(texture_pairs=TEXTURES, energy=0.999).texture.shape[1]
    assert small < large
    assert fitted(texture_pairs=TEXTURES, energy=0.999, max_rank=2).texture.shape[1] == 2


def test_gram_schmidt_makes_directions_orthogonal_and_keeps_the_first():
    pairs = {"side": PAIRS["side"], "both": [("a sun left", "a shadow right"), ("big sun left", "big shadow right")]}
    plain = FactorDirections.fit(encode, pairs, positions="tokens")
    found = FactorDirections.fit(encode, pairs, positions="tokens", orthogonal=True)
    assert torch.equal(found.directions["side"], plain.directions["side"])
    assert (plain.directions["side"] * plain.directions["both"]).sum().abs() > 1
    assert (found.directions["side"] * found.directions["both"]).sum().abs() < 1e-4


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    embeds, mask, _ = encode(["tall sun left", "a shadow dark lit"])
    return embeds, mask


@pytest.mark.parametrize("positions", ["tokens", "mean"])
def test_the_edit_is_linear_and_spares_bos_and_padding(positions):
    found, (embeds, mask) = fitted(positions=positions), prompts()
    one = found.edit(embeds, mask, {"side": 0.2, "light": -0.1})
    three = found.edit(embeds, mask, {"side": 0.6, "light": -0.3})
    torch.testing.assert_close(three - embeds, 3 * (one - embeds), atol=1e-5, rtol=0)
    apart = found.edit(embeds, mask, {"side": 0.2}) + found.edit(embeds, mask, {"light": -0.1}) - embeds
    torch.testing.assert_close(one, apart, atol=1e-5, rtol=0)
    assert torch.equal(one[:, 0], embeds[:, 0])
    assert torch.equal(one[~mask], embeds[~mask])
    assert not torch.equal(one[0, 3], embeds[0, 3])


def test_the_edit_moves_by_alpha_in_units_of_the_rms_of_the_embedding():
    found, (embeds, mask) = fitted(positions="mean"), prompts()
    moved = (found.edit(embeds, mask, {"side": 0.5}) - embeds)[1, 1:5]
    rms = embeds[1, mask[1]].square().mean().sqrt()
    torch.testing.assert_close(moved, 0.5 * rms * found.directions["side"].expand(4, DIM), atol=1e-5, rtol=1e-5)


def test_an_edit_of_no_strength_is_the_embedding_itself():
    found, (embeds, mask) = fitted(), prompts()
    assert found.edit(embeds, mask, {}) is embeds
    assert found.edit(embeds, mask, {"side": 0.0, "light": torch.zeros(2)}) is embeds


def test_strengths_by_prompt_equal_single_edits():
    found, (embeds, mask) = fitted(), prompts()
    both = found.edit(embeds, mask, {"side": torch.tensor([0.4, 0.0])})
    torch.testing.assert_close(both[:1], found.edit(embeds[:1], mask[:1], {"side": 0.4}))
    assert torch.equal(both[1], embeds[1])


def test_renorm_keeps_the_norm_of_each_token():
    found, (embeds, mask) = fitted(positions="mean"), prompts()
    edited = found.edit(embeds, mask, {"side": 0.7}, renorm=True)
    torch.testing.assert_close(edited.norm(dim=-1), embeds.norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(edited, embeds)


def test_tokens_narrow_the_edit():
    found, (embeds, mask) = fitted(positions="mean"), prompts()
    only = torch.zeros_like(mask)
    only[:, 2] = True
    edited = found.edit(embeds, mask, {"side": 0.7}, tokens=only)
    assert torch.equal(edited[:, [0, 1, *range(3, LENGTH)]], embeds[:, [0, 1, *range(3, LENGTH)]])
    assert not torch.equal(edited[:, 2], embeds[:, 2])


def test_half_precision_stays_half():
    found, (embeds, mask) = fitted(), prompts()
    assert found.edit(embeds.bfloat16(), mask, {"side": 0.5}).dtype == torch.bfloat16


def test_pooled_vectors_have_directions_of_their_own():
    found = fitted(pooled=True)
    vector = encode(["tall sun left"])[2]
    moved = found.edit_pooled(vector, {"side": 0.5}) - vector
    expected = TABLE[WORDS.index("left")] - TABLE[WORDS.index("right")]
    assert torch.cosine_similarity(moved[0], expected, dim=0) == pytest.approx(1, abs=1e-5)
    assert moved.square().mean().sqrt() == pytest.approx(0.5 * vector.square().mean().sqrt().item(), rel=1e-5)
    assert found.edit_pooled(vector, {"side": 0.0}) is vector
    with pytest.raises(ValueError, match="pooled=True"):
        fitted().edit_pooled(vector, {"side": 0.5})
    with pytest.raises(ValueError, match="third value"):
        FactorDirections.fit(lambda texts: encode(texts)[:2], PAIRS, pooled=True)


def test_what_was_saved_edits_the_same_bits(tmp_path):
    found, (embeds, mask) = fitted(texture_pairs=TEXTURES, pooled=True, skip=(0, 1)), prompts()
    found.save(tmp_path / "directions")
    loaded = FactorDirections.load(tmp_path / "directions")
    assert loaded.factors == found.factors and loaded.skip == (0, 1)
    alpha = {"side": 0.3, "light": -0.4}
    assert torch.equal(loaded.edit(embeds, mask, alpha), found.edit(embeds, mask, alpha))
    assert torch.equal(loaded.texture, found.texture)
    assert torch.equal(loaded.pooled["light"], found.pooled["light"])


class TinyPipeline:
    """Has what LINA's pipeline has."""

    def encode_prompt(self, prompt: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return encode(prompt)[:2]


class NoMask:
    """Has an `encode_prompt` such as Stable Diffusion's."""

    tokenizer = None

    def encode_prompt(self, prompt: list[str]) -> tuple[torch.Tensor, None]:
        return encode(prompt)[0], None


def test_a_pipeline_can_stand_for_its_encoder():
    found = FactorDirections.fit(TinyPipeline(), PAIRS)
    assert torch.equal(found.directions["side"], fitted().directions["side"])
    with pytest.raises(ValueError, match=r"NoMask.encode_prompt gives no mask.*pass a function"):
        FactorDirections.fit(NoMask(), PAIRS)


def test_bad_input_is_named():
    found, (embeds, mask) = fitted(), prompts()
    with pytest.raises(ValueError, match="unknown factor 'colour'; known factors: side, light"):
        found.edit(embeds, mask, {"colour": 0.1})
    with pytest.raises(ValueError, match="alpha of 'side' must be one finite number"):
        found.edit(embeds, mask, {"side": float("nan")})
    with pytest.raises(ValueError, match=rf"embeds must be \(B, L, {DIM}\), got \(2, 8, 5\)"):
        found.edit(embeds[..., :5], mask, {"side": 0.1})
    with pytest.raises(ValueError, match=r"embeds must have 8 tokens for 'side'.*got 6"):
        found.edit(embeds[:, :6], mask[:, :6], {"side": 0.1})
    with pytest.raises(ValueError, match="'side' encode alike"):
        FactorDirections.fit(encode, {"side": [("sun left", "sun left")]})
    with pytest.raises(ValueError, match="at least one factor"):
        FactorDirections.fit(encode, {"side": []})
    with pytest.raises(ValueError, match="'light' is nothing but texture"):
        FactorDirections.fit(encode, {"light": [("matte", "glossy")]}, [("matte", "glossy")])
