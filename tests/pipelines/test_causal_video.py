"""Videos by chunks, as people use them: what goes in, what comes out, and how a session goes on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from PIL import Image
from transformers import BatchEncoding, T5Config, T5EncoderModel

import gendiff
from gendiff.pipelines.causal_video import (
    CausalVideoPipeline,
    CausalVideoPipelineOutput,
    CausalVideoSession,
    SessionSnapshot,
    VideoChunk,
)

SHAPE = (1, 16, 8)
FAST = {"num_inference_steps": 1}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(count, batch=1):
    """(B, T, C, H, W) in [0, 1], whole 255ths, so that PIL images hold them exactly."""
    return torch.randint(0, 256, (batch, count, *SHAPE), generator=seeded(7)) / 255


def images(video):
    """(T, 1, H, W) in [0, 1] as PIL images."""
    return [Image.fromarray((255 * frame[0]).round().byte().numpy()) for frame in video]


def draw(pipe, num_frames=6, output_type="pt", **options):
    return pipe(num_frames=num_frames, output_type=output_type, **{"generator": seeded(), **FAST, **options}).frames


@pytest.fixture
def pipe(tiny_video_pipeline) -> CausalVideoPipeline:
    return tiny_video_pipeline()


def test_every_kind_of_output_is_one_video(pipe):
    tensor, array, pil, latent = (draw(pipe, 5, kind, class_labels=[0, 1]) for kind in ("pt", "np", "pil", "latent"))
    assert tensor.shape == (2, 5, *SHAPE) and tensor.min() >= 0 and tensor.max() <= 1
    assert array.shape == (2, 5, 16, 8, 1) and np.array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert [len(video) for video in pil] == [5, 5] and pil[0][0].size == (8, 16) and pil[0][0].mode == "L"
    assert np.array_equal(np.asarray(pil[1][4]), (255 * tensor[1, 4, 0]).round().byte().numpy())
    assert torch.equal((latent / 2 + 0.5).clamp(0, 1), tensor)
    output = pipe(num_frames=2, return_dict=False, **FAST)
    assert isinstance(output, tuple) and len(output[0][0]) == 2
    assert isinstance(pipe(num_frames=2, **FAST), CausalVideoPipelineOutput)


def test_the_stats_say_what_each_chunk_cost(pipe):
    stats = pipe(image=clip(1)[:, 0], class_labels="two", num_frames=6, **FAST).stats
    rows = stats.plan["chunks"]
    assert [(row["start"], row["frames"]) for row in rows] == [(0, 1), (1, 2), (3, 2), (5, 1)]
    assert stats.network_calls == 1 + 3 * 2 and stats.flops > 0 and stats.cache_bytes == rows[-1]["cache_bytes"] > 0
    assert all(row["seconds"] > 0 for row in rows) and sum(row["seconds"] for row in rows) <= stats.seconds
    assert stats.plan["scheduler"] == "FlowMatchEulerDiscreteScheduler" and stats.plan["context_frames"] == 5


@pytest.mark.parametrize("mode", ["frame_causal", "prefix_causal", "block_causal"])
def test_any_number_of_frames_is_exactly_that_many(tiny_video_pipeline, mode):
    pipe = tiny_video_pipeline(attention_mode=mode, chunk_size=3, num_layers=1)
    for count in range(1, 9):
        assert draw(pipe, count).shape == (1, count, *SHAPE)
        if count > 1:
            video = draw(pipe, count, image=clip(1)[:, 0])
            assert video.shape == (1, count, *SHAPE)
            assert torch.allclose(video[:, :1], clip(1), atol=1e-6)


def test_given_frames_come_in_many_forms(pipe):
    one, three = clip(1, 2), clip(3, 2)
    forms = [
        [{"image": one[:, 0]}, {"image": one[:, 0].numpy()}, {"image": images(one[:, 0])}, {"video": one}],
        [
            {"video": three},
            {"video": three.double().numpy()},
            {"video": [images(video) for video in three]},
            {"latents": 2 * three - 1},
        ],
        [{"image": one[0, 0]}, {"image": images(one[0])[0]}, {"video": one[0]}, {"video": images(one[0])}],
    ]
    for same in forms:
        videos = [draw(pipe, 5, **given) for given in same]
        assert all(torch.allclose(video, videos[0], atol=1e-5) for video in videos)
    assert not torch.allclose(draw(pipe, 5, video=three)[:, 3:], draw(pipe, 5, video=1 - three)[:, 3:], atol=1e-3)


def test_several_videos_of_each_start_stand_next_to_one_another(pipe):
    video = draw(pipe, 4, video=clip(1, 2), class_labels=["one", "three"], num_videos_per_prompt=2)
    assert video.shape[0] == 4 and torch.equal(video[0, 0], video[1, 0]) and not torch.equal(video[1, 0], video[2, 0])
    assert not torch.allclose(video[0, 1:], video[1, 1:], atol=1e-3)
    together = draw(pipe, 4, class_labels=[0, 2], num_videos_per_prompt=2, generator=[seeded(i) for i in range(4)])
    alone = draw(pipe, 4, class_labels=2, generator=seeded(2))
    assert torch.allclose(together[2], alone[0], atol=1e-5)


def test_a_step_callback_replaces_latents_and_stops(pipe):
    seen = []

    def zero(pipeline, step, timestep, kwargs):
        seen.append((step, float(timestep), tuple(kwargs["latents"].shape)))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    video = draw(pipe, 5, "latent", num_inference_steps=2, callback_on_step_end=zero)
    assert not video.any()
    assert [step for step, *_ in seen] == [0, 1] * 3
    assert {shape for *_, shape in seen} == {(1, 1, 1, 16, 8), (1, 1, 2, 16, 8)}

    calls = []

    def stop(pipeline, step, timestep, kwargs):
        calls.append(step)
        return {"stop": len(calls) == 4}

    video = draw(pipe, 9, num_inference_steps=2, callback_on_step_end=stop)
    assert video.shape[1] == 1 and len(calls) == 4  # the second chunk was never finished
    assert torch.equal(video, draw(pipe, 1, num_inference_steps=2))


@pytest.mark.parametrize("output_type", ["pt", "np", "pil", "latent"])
def test_a_video_stopped_at_once_is_empty_or_the_given_frames(pipe, output_type):
    stop = {"callback_on_step_end": lambda *_: {"stop": True}}
    assert len(draw(pipe, 9, output_type, **stop)[0]) == 0
    assert len(draw(pipe, 9, output_type, video=clip(3), **stop)[0]) == 3


def test_a_chunk_callback_sees_the_session_and_stops(pipe):
    seen = []

    def watch(session, chunk):
        assert isinstance(session, CausalVideoSession) and isinstance(chunk, VideoChunk)
        seen.append((chunk.index, session.num_frames))
        return {"stop": session.num_frames >= 5}

    assert draw(pipe, 20, callback_on_chunk_end=watch).shape[1] == 5
    assert seen == [(0, 1), (1, 3), (2, 5)]
    chunks = list(pipe.stream(callback_on_chunk_end=lambda session, chunk: {"stop": True}, **FAST))
    assert len(chunks) == 1


def test_a_stream_has_no_end_and_can_be_closed(pipe):
    stream = pipe.stream(image=clip(1)[:, 0], generator=seeded(), **FAST)
    chunks = [next(stream) for _ in range(12)]
    assert [chunk.start for chunk in chunks] == [0, *range(1, 23, 2)]
    assert len({chunk.cache_bytes for chunk in chunks[4:]}) == 1
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert draw(pipe, 3).shape[1] == 3


def start(pipe, count=3, batch=1, seed=0, **options):
    return pipe.start(video=clip(count, batch), generator=seeded(seed), **{**FAST, **options})


def test_a_session_goes_on_where_it_stopped(pipe):
    session = start(pipe, class_labels=1)
    pieces = [session.generate(count) for count in (2, 2, 3)]
    assert session.num_frames == 10 and session.given.frames.shape[1] == 3
    joined = torch.cat([session.given.frames, *(piece.frames for piece in pieces)], dim=1)
    assert torch.equal(joined, draw(pipe, 10, video=clip(3), class_labels=1))
    assert [piece.stats.network_calls for piece in pieces] == [2, 2, 4] and session.stats.network_calls == 1 + 8
    assert isinstance(session.generate(1, output_type="pil").frames[0][0], Image.Image)


@pytest.mark.parametrize("mode", ["frame_causal", "prefix_causal"])
def test_observed_frames_are_what_they_would_be_as_a_start(tiny_video_pipeline, mode):
    """Within the window, however they are grouped; beyond it, for a single layer."""
    for layers, count in ((2, 5), (1, 9)):
        pipe = tiny_video_pipeline(dtype=torch.float64, attention_mode=mode, num_layers=layers)
        whole, video = start(pipe, count), clip(count)
        pieces = start(pipe, 1)
        pieces.append(video=video[:, 1:4])
        pieces.append(latents=2 * video[:, 4:].double() - 1)
        from_nothing = pipe.start(generator=seeded(), **FAST)
        from_nothing.append(video=images(video[0]))
        futures = [session.generate(4).frames for session in (whole, pieces, from_nothing)]
        assert all(session.num_frames == count + 4 for session in (whole, pieces, from_nothing))
        assert all(torch.allclose(future, futures[0], atol=1e-6) for future in futures)


def test_observed_frames_of_whole_chunks_start_a_block_causal_video(tiny_video_pipeline):
    pipe = tiny_video_pipeline(dtype=torch.float64, attention_mode="block_causal", chunk_size=2)
    whole, later, grown = start(pipe, 5), pipe.start(generator=seeded(), **FAST), start(pipe, 1)
    later.append(video=clip(5))
    grown.append(video=clip(5)[:, 1:])
    futures = [session.generate(4).frames for session in (whole, later, grown)]
    assert torch.allclose(futures[0], futures[1], atol=1e-10) and torch.allclose(futures[0], futures[2], atol=1e-10)


def test_observed_frames_change_the_future(pipe):
    futures = []
    for frame in (clip(1), 1 - clip(1)):
        session = start(pipe)
        session.append(image=frame[:, 0])
        futures.append(session.generate(2).frames)
    assert session.num_frames == 6 and not torch.allclose(*futures, atol=1e-3)


@pytest.mark.parametrize("sinks", [0, 2])
def test_of_a_long_start_the_window_and_the_sinks_are_kept(tiny_video_pipeline, sinks):
    pipe = tiny_video_pipeline(dtype=torch.float64)
    video, window = clip(12), 5
    kept = torch.cat([video[:, :sinks], video[:, 12 - window + sinks :]], dim=1)
    options = {"sink_frames": sinks, "num_inference_steps": 2}
    long, short = (draw(pipe, given.shape[1] + 2, video=given, **options) for given in (video, kept))
    assert long.shape[1] == 14 and torch.allclose(long[:, :12], video.double(), atol=1e-6)
    assert torch.allclose(long[:, -2:], short[:, -2:], atol=1e-10)
    slow = draw(pipe, 16, video=video, use_cache=False, **options)
    fast = draw(pipe, 16, video=video, **options)
    assert torch.allclose(slow, fast, atol=1e-10)


def test_guidance_can_start_in_the_middle(tiny_video_pipeline):
    pipe = tiny_video_pipeline(dtype=torch.float64)
    session, guided = start(pipe, 5, class_labels=1), start(pipe, 5, class_labels=1, guidance_scale=3.0)
    session.recache(guidance_scale=3.0)
    assert torch.allclose(session.generate(6).frames, guided.generate(6).frames, atol=1e-10)
    assert session.guidance_scale == 3.0 and session.cache_bytes == guided.cache_bytes
    session.recache(guidance_scale=1.0)
    assert 2 * session.cache_bytes == guided.cache_bytes and session.generate(2).stats.network_calls == 2


def test_noise_on_the_context_is_drawn_once_for_each_frame(tiny_video_pipeline):
    pipe = tiny_video_pipeline(DDPMScheduler(num_train_timesteps=50), torch.float64, attention_mode="prefix_causal")
    options = {"context_noise": 0.2, "video": clip(7), "num_inference_steps": 2}
    fast = draw(pipe, 14, **options)
    assert torch.allclose(fast, draw(pipe, 14, use_cache=False, **options), atol=1e-10)
    assert torch.allclose(fast[:, :7], clip(7).double(), atol=1e-6)  # what is shown is clean
    window = draw(pipe, 14, use_cache="window", **options)
    assert torch.allclose(window, draw(pipe, 14, cache_refresh="always", **options), atol=1e-10)
    # One draw for each of the 5 kept frames, two for each walked one (walk and write), one for each step but the last.
    generator, other = seeded(), seeded()
    draw(pipe, 9, generator=generator, **options)
    for count in (5, 2, 2, 2):
        for _ in range(1 if count == 2 else count):
            torch.randn(1, count if count == 2 else 1, *SHAPE, generator=other, dtype=torch.float64)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other))


def test_the_cache_is_rebuilt_every_so_many_chunks(tiny_video_pipeline):
    pipe = tiny_video_pipeline(dtype=torch.float64)
    session = start(pipe, 5, cache_refresh=3)
    calls = [chunk.network_calls for chunk in session.chunks(12)]
    assert calls == [2, 2, 3, 2, 2, 3]
    by_hand = start(pipe, 5)
    new = [by_hand.generate(4).frames]
    for count in (6, 2):
        by_hand.recache()
        new.append(by_hand.generate(count).frames)
    again = start(pipe, 5, cache_refresh=3)
    assert torch.equal(torch.cat(new, dim=1), again.generate(12).frames)


class Interrupt:
    """Raises KeyboardInterrupt in call number `at` of a module, after its first block."""

    def __init__(self, module, at):
        self.calls, self.at = 0, at
        self.hook = module.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt


CHUNKS = [  # options, and how many times a chunk of two steps calls the network
    ({}, 3),
    ({"guidance_scale": 2.0, "class_labels": 0}, 6),
    ({"cache_refresh": "always"}, 4),
    ({"use_cache": False}, 2),
]


@pytest.mark.parametrize(("options", "at"), [(options, at + 1) for options, calls in CHUNKS for at in range(calls)])
def test_an_interrupt_loses_only_the_chunk_in_the_making(pipe, options, at):
    """In each read, in the write, in the rebuilding of a cache; and the next chunk is as if it had never been."""
    session, undisturbed = (start(pipe, 3, **options, num_inference_steps=2) for _ in range(2))
    session.generate(4), undisturbed.generate(4)
    expected = undisturbed.generate(4).frames
    interrupt = Interrupt(pipe.transformer.blocks[0], at)
    state = session.generator.get_state()
    with pytest.raises(KeyboardInterrupt):
        session.generate(2)
    interrupt.hook.remove()
    assert session.num_frames == 7
    session.generator.set_state(state)
    assert torch.equal(session.generate(4).frames, expected)


def test_an_interrupt_of_observing_or_recaching_changes_nothing(tiny_video_pipeline):
    acts = [
        lambda session: session.append(video=clip(5)),
        lambda session: session.recache(guidance_scale=3.0),
        lambda session: session.set_condition(class_labels=2),
    ]
    pipe = tiny_video_pipeline()
    expected = start(pipe, 3, class_labels=0, guidance_scale=2.0).generate(4).frames
    for act in acts:
        session = start(pipe, 3, class_labels=0, guidance_scale=2.0)
        interrupt = Interrupt(pipe.transformer.blocks[0], 2)
        with pytest.raises(KeyboardInterrupt):
            act(session)
        interrupt.hook.remove()
        assert session.num_frames == 3 and torch.equal(session.generate(4).frames, expected)


def make_vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()


def test_frames_go_through_a_vae_one_by_one(tiny_video_pipeline, tmp_path):
    vae = make_vae()
    pipe = tiny_video_pipeline(in_channels=2, components={"vae": vae})
    assert pipe.sample_shape == (3, 32, 16) and pipe.latent_shape == (2, 16, 8)
    video = torch.rand(1, 3, 3, 32, 16, generator=seeded())
    latent, frames = (draw(pipe, 6, kind, video=video) for kind in ("latent", "pt"))
    assert latent.shape == (1, 6, 2, 16, 8) and frames.shape == (1, 6, 3, 32, 16)
    with torch.no_grad():
        code = (vae.encode(2 * video[0, 1:2] - 1).latent_dist.mode() - 0.25) * 0.5
        picture = vae.decode(latent[0, 4:5] / 0.5 + 0.25).sample
    assert torch.allclose(latent[0, 1:2], code, atol=1e-5)
    assert torch.allclose(frames[0, 4:5], (picture / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert torch.allclose(draw(pipe, 6, "latent", latents=latent[:, :3]), latent, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    loaded = CausalVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.allclose(draw(loaded, 6, video=video), frames, atol=1e-5)


class Words:
    """A tokenizer: a word's number is its length."""

    def __call__(self, texts, padding, truncation, return_tensors):
        assert padding == "longest" and truncation and return_tensors == "pt"
        rows = [[min(len(word), 29) + 1 for word in text.split()] + [1] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


@pytest.fixture
def text_pipe(tiny_video_pipeline):
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=32, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).eval()
    pipe = tiny_video_pipeline(num_classes=0, cross_attention_dim=12)
    pipe.tokenizer, pipe.text_encoder = Words(), encoder
    return pipe


def test_a_prompt_leads_the_video(text_pipe):
    pair = ["a ball rises", "two balls meet in the middle"]
    options = {"num_frames": 5, "guidance_scale": 2.0}
    together = draw(text_pipe, prompt=pair, generator=[seeded(0), seeded(1)], **options)
    for i, prompt in enumerate(pair):
        assert torch.allclose(draw(text_pipe, prompt=prompt, generator=seeded(i), **options)[0], together[i], atol=1e-5)
    base = draw(text_pipe, prompt=pair[0], **options)
    assert torch.allclose(draw(text_pipe, prompt=pair[0], negative_prompt="", **options), base, atol=1e-6)
    assert not torch.allclose(draw(text_pipe, prompt=pair[0], negative_prompt="no ball", **options), base, atol=1e-3)
    assert not torch.allclose(draw(text_pipe, prompt=pair[1], **options), base, atol=1e-3)
    spread = draw(text_pipe, prompt=pair[0], video=clip(1, 2), **options)
    assert spread.shape[0] == 2


def test_the_prompt_can_change_in_the_middle(text_pipe):
    futures = []
    for prompt in ("a ball rises", "it falls again"):
        session = text_pipe.start(prompt="a ball rises", generator=seeded(), guidance_scale=2.0, **FAST)
        session.generate(5)
        session.set_condition(prompt=prompt)
        futures.append(session.generate(2).frames)
    assert not torch.allclose(*futures, atol=1e-3)


def test_a_class_and_texts_together(tiny_video_pipeline):
    pipe = tiny_video_pipeline(cross_attention_dim=12)
    texts = torch.randn(3, 4, 12, generator=seeded())
    assert draw(pipe, 3, class_labels=1, prompt_embeds=texts).shape[0] == 3
    one = draw(pipe, 3, class_labels=[0, 1], prompt_embeds=texts[:1], guidance_scale=2.0)
    assert one.shape[0] == 2 and not torch.allclose(one[0], one[1], atol=1e-3)


def test_it_saves_loads_copies_and_casts(tiny_video_pipeline, tmp_path):
    pipe = tiny_video_pipeline(DDIMScheduler(num_train_timesteps=100), prefix_references=2)
    video = draw(pipe, 6, class_labels="two")
    pipe.save_pretrained(tmp_path)
    loaded = gendiff.load_pipeline(tmp_path)
    assert isinstance(loaded, CausalVideoPipeline) and loaded.class_names == ["one", "two", "three"]
    for other in (loaded, copy.deepcopy(pipe)):  # not to the last bit: weights lie elsewhere, and so sums round
        other.set_progress_bar_config(disable=True)
        assert torch.allclose(draw(other, 6, class_labels="two"), video, atol=1e-5)
    half = copy.deepcopy(pipe).to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    low = draw(half, 6, "latent", class_labels="two", video=clip(1))
    assert low.dtype == torch.bfloat16 and low.isfinite().all()
    assert CausalVideoPipeline.model_cpu_offload_seq == "text_encoder->transformer->vae"
    assert set(CausalVideoPipeline._optional_components) == {"vae", "text_encoder", "tokenizer"}


def test_class_names_must_be_as_many_as_classes(pipe):
    with pytest.raises(ValueError, match=r"class_names must be 3, .* got 2"):
        CausalVideoPipeline(pipe.transformer, pipe.scheduler, class_names=["a", "b"])


def test_training_mode_is_left_with_a_warning(pipe):
    pipe.transformer.train()
    with pytest.warns(UserWarning, match="training mode; switched to evaluation"):
        draw(pipe, 2)
    assert not pipe.transformer.training


def test_without_a_generator_videos_differ_but_a_snapshot_still_holds(pipe):
    session = pipe.start(**FAST)
    point = session.snapshot()
    assert isinstance(point, SessionSnapshot)
    first = session.generate(3).frames
    session.restore(point)
    assert torch.equal(session.generate(3).frames, first)
    assert not torch.equal(draw(pipe, 3, generator=None), draw(pipe, 3, generator=None))


def test_what_a_caller_does_to_frames_does_not_reach_the_session(pipe):
    latents = 2 * clip(3) - 1
    session, other = (pipe.start(latents=given, generator=seeded(), **FAST) for given in (latents, latents.clone()))
    latents.zero_(), session.given.latents.zero_()
    for chunk in session.chunks(2):
        chunk.latents.zero_()
    other.generate(2)
    assert torch.equal(session.generate(2).frames, other.generate(2).frames)
