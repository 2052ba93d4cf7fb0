"""Losses of causal video: what the network is shown, what counts, and that both ways of forcing agree."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.training.causal_video import draw_prefix, objective, prefix_loss, teacher_forcing_loss

STARTS, SIZES = (0, 1, 3, 5), (1, 2, 2, 2)  # of the chunks of a clip of W + l = 7 frames


class Spy:
    """The network, remembering what it was given and said; `change` may alter what it says."""

    def __init__(self, network: Any, change: Any = lambda prediction: prediction):
        self.network, self.config, self.change = network, network.config, change

    def __call__(self, hidden_states: Tensor, timestep: Tensor, **arguments: Any) -> tuple[Tensor]:
        self.states, self.times, self.arguments = hidden_states, timestep, arguments
        self.said = self.network(hidden_states, timestep, **arguments)[0]
        return (self.change(self.said),)


class Silent:
    """A network with the config of another that says 0, for what does not depend on what it says."""

    def __init__(self, network: Any):
        self.config = network.config

    def __call__(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_prefix(config: Any, prefix: int) -> torch.Generator:
    """A generator from which a prefix of this length is drawn."""
    seed = next(seed for seed in count() if draw_prefix(config, seeded(seed))[0] == prefix)
    return seeded(seed)


def clip(frames: int = 7, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, frames, 1, 16, 8, generator=seeded(3), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler(), DDPMScheduler()])
@pytest.mark.parametrize("mode", ["frame_causal", "prefix_causal", "block_causal"])
@pytest.mark.parametrize(("pos", "frames"), [("rope", 7), ("cyclic", 5)])  # cyclic clips of 7 get a random offset
def test_each_chunk_costs_the_same_in_teacher_forcing_and_after_a_prefix(
    tiny_video_transformer, pos, frames, mode, scheduler
):
    spy = Spy(tiny_video_transformer(pos=pos, attention_mode=mode).double())
    models = {"transformer": spy, "scheduler": scheduler}
    video, chunks = clip(dtype=torch.float64), [(s, n) for s, n in zip(STARTS, SIZES, strict=True) if s < frames]
    levels = torch.linspace(0.15, 0.9, len(chunks))[None]

    def same_noise(generator: torch.Generator, first: int, chosen: Tensor) -> Any:
        """Levels as chosen, and the noise that follows is that of the video from frame `first` on."""

        def draw(*shape: int) -> Tensor:
            assert shape == chosen.shape
            generator.manual_seed(9)
            torch.randn(1, first, *video.shape[2:], generator=generator)
            return chosen

        return draw

    generator = seeded(0)
    draw = same_noise(generator, 0, levels)
    with torch.no_grad():
        total = teacher_forcing_loss(models, video[:, :frames], {}, draw, 0.0, generator)
        forced, noisy = (part[:, :, frames:].transpose(1, 2) for part in (spy.said, spy.states))
        weighed = 0.0
        for index, (start, size) in enumerate(chunks):
            generator = with_prefix(spy.config, start)
            draw = same_noise(generator, start, levels[:, index : index + 1])
            loss = prefix_loss(models, video, {}, draw, 0.0, generator)
            assert spy.said.shape[2] == start + size
            alone = spy.said[:, :, start:].transpose(1, 2)
            assert torch.equal(noisy[:, start : start + size], spy.states[:, :, start:].transpose(1, 2))
            torch.testing.assert_close(forced[:, start : start + size], alone, atol=1e-10, rtol=0)
            weighed += size / frames * loss
    torch.testing.assert_close(weighed, total, atol=1e-10, rtol=0)
    assert total > 0.1


@pytest.mark.parametrize("prefix", [1, 3, 5])
def test_what_the_network_says_of_the_prefix_has_no_gradient_and_no_effect(tiny_video_transformer, prefix):
    network = tiny_video_transformer()
    models = {"scheduler": FlowMatchEulerDiscreteScheduler()}

    def loss_of(change: Any) -> tuple[Tensor, Spy]:
        spy, generator = Spy(network, change), with_prefix(network.config, prefix)
        levels = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
        video = clip(batch=2)
        return prefix_loss({**models, "transformer": spy}, video, {}, levels, 0.1, generator), spy

    loss, spy = loss_of(lambda said: said)
    (gradient,) = torch.autograd.grad(loss, spy.said)
    assert gradient[:, :, :prefix].abs().max() == 0
    assert gradient[:, :, prefix:].abs().min() > 0
    replaced, _ = loss_of(lambda said: torch.cat([torch.full_like(said[:, :, :prefix], 1e9), said[:, :, prefix:]], 2))
    assert torch.equal(replaced, loss)


def test_prefixes_have_all_lengths_of_whole_chunks_and_are_empty_as_often_as_the_model_says(tiny_video_transformer):
    for share in (0.0, 0.25, 1.0):
        config, generator = tiny_video_transformer(p_empty=share).config, seeded(0)
        drawn = Counter(draw_prefix(config, generator) for _ in range(4000))
        assert drawn[0, 1] / 4000 == pytest.approx(share, abs=0.02)
        assert set(drawn) == ({(1, 2), (3, 2), (5, 2)} if share < 1 else set()) | ({(0, 1)} if share else set())
        for prefix in (1, 3, 5):
            assert drawn[prefix, 2] / 4000 == pytest.approx((1 - share) / 3, abs=0.02)


@pytest.mark.parametrize("pos", ["cyclic", "rope"])
def test_only_cyclic_clips_as_long_as_the_cycle_begin_anywhere_in_it(tiny_video_transformer, pos):
    spy = Spy(Silent(tiny_video_transformer(pos=pos)))
    models = {"transformer": spy, "scheduler": FlowMatchEulerDiscreteScheduler()}
    anywhere = set(range(7)) if pos == "cyclic" else {0}

    def offsets(forcing: str, frames: int) -> dict[int, set[int]]:
        """Offsets drawn, by number of frames in the forward."""
        found: dict[int, set[int]] = {}
        for seed in range(60):
            objective(models, {"video": clip(frames), "label": torch.zeros(1).long()}, seeded(seed), forcing)
            index = spy.arguments["frame_index"]
            length = len(index) // 2 if forcing == "teacher" else len(index)
            assert torch.equal(index - index[0], torch.arange(length).repeat(len(index) // length))
            found.setdefault(length, set()).add(int(index[0]))
        return found

    assert offsets("teacher", 7) == {7: anywhere}
    assert offsets("teacher", 5) == {5: {0}}
    assert offsets("prefix", 7) == {1: {0}, 3: {0}, 5: {0}, 7: anywhere}


@pytest.mark.parametrize("forcing", ["teacher", "prefix"])
def test_context_noise_is_on_clean_frames_alone_which_keep_timestep_0_and_their_target(forcing):
    class Perfect:
        """Knows the answer from the noisy frames, whatever is done to the clean ones."""

        config = {  # noqa: RUF012
            "chunk_size": 2,
            "context_frames": 5,
            "prefix_references": 1,
            "attention_mode": "frame_causal",
            "pos": "rope",
            "num_classes": 0,
            "cross_attention_dim": None,
            "p_empty": 0.0,
        }

        def __call__(self, states: Tensor, times: Tensor, **_: Any) -> tuple[Tensor]:
            self.states, self.times = states.transpose(1, 2), times
            level = times[..., None, None, None] / 1000
            clean = video[:, : states.shape[2]] if forcing == "prefix" else video.repeat(1, 2, 1, 1, 1)
            return (((self.states - clean) / level.clamp(min=1e-3)).transpose(1, 2),)

    video, perfect = clip(batch=64), Perfect()
    models = {"transformer": perfect, "scheduler": FlowMatchEulerDiscreteScheduler()}
    for most in (0.0, 0.4):
        loss = objective(models, {"video": video}, seeded(1), forcing, context_noise=most)["diffusion"]
        assert loss < 1e-6
        clean = perfect.times == 0
        known = 7 if forcing == "teacher" else clean[0].sum()
        assert clean[:, :known].all() and not clean[:, known:].any()
        added = (perfect.states[:, :known] - video[:, :known]).flatten(1).std(dim=1)
        assert added.max() <= 1.1 * most
        assert most == 0 or (added.min() < 0.1 * most and added.mean() == pytest.approx(most / 2, rel=0.2))


def test_levels_follow_the_density_that_was_asked_for(tiny_video_transformer):
    spy = Spy(Silent(tiny_video_transformer(num_classes=0)))
    batch = {"video": clip(batch=400)}

    def levels(shift: float, timesteps: str) -> Tensor:
        models = {"transformer": spy, "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift)}
        objective(models, batch, seeded(0), timesteps=timesteps)
        return spy.times[:, [7, 8, 10, 12]] / 1000

    uniform, normal = levels(1.0, "uniform"), levels(1.0, "logit-normal")
    assert torch.equal(spy.times[:, 8], spy.times[:, 9])  # one level for a chunk
    assert uniform.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert normal.logit().mean().item() == pytest.approx(0, abs=0.06)
    assert normal.logit().std().item() == pytest.approx(1, abs=0.06)
    assert len(normal.unique()) == 1600  # each clip and each chunk its own
    torch.testing.assert_close(levels(3.0, "uniform"), 3 * uniform / (1 + 2 * uniform))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"video": clip(6)}, {}, r"num_frames must be 1 \+ a multiple of chunk_size 2, got 6"),
        ({"video": clip(6)}, {"forcing": "prefix"}, r"at least context_frames \+ chunk_size = 7, got 6"),
        ({}, {"forcing": "student"}, "objective.forcing must be one of teacher, prefix, got 'student'"),
        ({}, {"timesteps": "cosine"}, "objective.timesteps must be logit-normal or uniform, got 'cosine'"),
        ({}, {"label_dropout": 1.5}, "objective.label_dropout must be from 0 to 1, got 1.5"),
        ({}, {"context_noise": -0.1}, "objective.context_noise must be from 0 to 1, got -0.1"),
        ({"label": torch.zeros(1, 2).long()}, {}, "one label for each video, got 2"),
        ({"label": None}, {}, r"items must have 'label', which the transformer is conditioned on; got \['video'\]"),
    ],
)
def test_bad_input_is_named_before_the_network_is_called(tiny_video_transformer, changes, arguments, message):
    spy = Spy(tiny_video_transformer())
    models = {"transformer": spy, "scheduler": FlowMatchEulerDiscreteScheduler()}
    batch = {"video": clip(), "label": torch.zeros(1).long(), **changes}
    batch = {name: value for name, value in batch.items() if value is not None}
    for seed in range(5):  # whatever prefix is drawn
        with pytest.raises(ValueError, match=message):
            objective(models, batch, seeded(seed), **arguments)
    assert not hasattr(spy, "states")
