"""Bad input: one line that names the argument, what it got and what would do, before any network is called."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler
from PIL import Image

from gendiff.pipelines.causal_video_branch import Context
from gendiff.pipelines.causal_video_past import Past
from gendiff.pipelines.stats import Meter
from gendiff.samplers.inversion import EDICTScheduler

SHAPE = (1, 16, 8)


def frames(*leading):
    return torch.full((*leading, *SHAPE), 0.5)


def spoiled(value, frame):
    video = frames(2, 3)
    video[1, frame, 0, 4, 4] = value
    return video


@pytest.fixture
def refuses():
    """`refuses(pipe, pattern, act)`: `act()` raises ValueError with `pattern`, and no module of `pipe` has run."""

    def check(pipe, pattern, act, error=ValueError):
        calls, modules = [], [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        hooks = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in modules]
        try:
            with pytest.raises(error, match=pattern) as raised:
                act()
        finally:
            for hook in hooks:
                hook.remove()
        assert not calls, "a network ran before the error"
        assert "\n" not in str(raised.value)

    return check


CALLS = [
    ({"image": frames(1), "video": frames(1, 2)}, "exactly one of image, video and latents, got image, video"),
    ({"image": frames(1), "latents": frames(1, 2)}, "exactly one of image, video and latents, got image, latents"),
    ({"num_frames": 0}, "num_frames counts the 0 given frames and must be .* at least 1, got 0"),
    ({"num_frames": -3}, "num_frames .* at least 1, got -3"),
    ({"num_frames": True}, "num_frames .* at least 1, got True"),
    ({"num_frames": 4.0}, "num_frames .* at least 1, got 4.0"),
    ({"num_frames": None}, r"num_frames .* got None; use stream\(\)"),
    ({"video": frames(1, 5), "num_frames": 5}, "num_frames counts the 5 given frames .* at least 6, got 5"),
    ({"image": frames(1), "num_frames": 1}, "num_frames counts the 1 given frames .* at least 2, got 1"),
    ({"image": torch.rand(1, 1, 8, 16)}, r"image: expected \(B,1,16,8\), got \(1,1,8,16\); nothing is resized"),
    ({"image": torch.rand(1, 3, 16, 8)}, r"image: expected \(B,1,16,8\), got \(1,3,16,8\)"),
    ({"video": torch.rand(1, 2, 1, 17, 8)}, r"video: expected \(B,T,1,16,8\), got \(1,2,1,17,8\)"),
    ({"video": frames(1, 0)}, r"video: expected \(B,T,1,16,8\), got \(1,0,1,16,8\)"),
    ({"latents": torch.rand(2, 16, 8)}, r"latents: expected \(B,T,1,16,8\), got \(2,16,8\)"),
    ({"image": Image.new("L", (16, 8))}, r"image: expected \(B,1,16,8\), got \(1,1,8,16\)"),
    ({"video": spoiled(1.5, 2)}, r"video must lie in \[0, 1\] and be finite; frame 2 of video 1 does not"),
    ({"video": spoiled(-0.1, 0)}, r"video must lie in \[0, 1\] and be finite; frame 0 of video 1 does not"),
    ({"video": spoiled(float("nan"), 1)}, "frame 1 of video 1 does not"),
    ({"latents": spoiled(float("inf"), 1)}, "latents must be finite; frame 1 of video 1 is not"),
    ({"video": frames(1, 2).byte()}, r"video must hold floats in \[0, 1\], got torch.uint8; divide uint8 by 255"),
    ({"latents": frames(1, 2).long()}, "latents must be a tensor of floats"),
    ({"image": "frame.png"}, "image must be PIL images or a tensor or array, got str"),
    ({"video": [frames(1)]}, "video must be PIL images or a tensor or array, got a list of something else"),
    ({"video": [Image.new("L", (8, 16)), [Image.new("L", (8, 16))]]}, "video must be one list .* got a mixture"),
    ({"video": [[Image.new("L", (8, 16))], 2 * [Image.new("L", (8, 16))]]}, "video: .* all videos one length"),
    ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
    ({"chunk_size": 2.0}, "chunk_size must be a whole number of at least 1, got 2.0"),
    ({"context_frames": 0}, "context_frames must be a whole number of at least 1, got 0"),
    ({"sink_frames": 5}, "sink_frames must be below context_frames = 5, .* got 5"),
    ({"sink_frames": -1}, "sink_frames must be a whole number of at least 0, got -1"),
    ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 1000, got 0"),
    ({"num_inference_steps": 1001}, "num_inference_steps must be a whole number from 1 to 1000, got 1001"),
    ({"guidance_scale": 2.0}, "guidance_scale must be 1 without a class or a text to guide to, got 2"),
    ({"guidance_scale": -1.0, "class_labels": 0}, "guidance_scale must be finite and at least 0, got -1.0"),
    ({"guidance_scale": float("nan"), "class_labels": 0}, "guidance_scale must be finite and at least 0, got nan"),
    ({"guidance_scale": "2", "class_labels": 0}, "guidance_scale must be finite and at least 0, got '2'"),
    ({"class_labels": 3}, "class_labels must be 0 to 2, or a name, got 3"),
    ({"class_labels": 1.5}, "class_labels must be 0 to 2, or a name, got 1.5"),
    ({"class_labels": "tow"}, "class_labels has 'tow'; .* Did you mean 'two'"),
    ({"class_labels": []}, "class_labels must hold one class for each of 1 videos, got 0"),
    ({"class_labels": [0, 1], "video": frames(3, 1)}, "class_labels must hold one class for each of 3 videos, got 2"),
    ({"prompt": "a"}, "prompt and prompt_embeds must be None: the model takes no text"),
    ({"generator": [torch.Generator()], "class_labels": [0, 1]}, "one generator for each of 2 videos, got 1"),
    ({"generator": [torch.Generator()], "num_videos_per_prompt": 2}, "one generator for each of 2 videos, got 1"),
    ({"generator": 7}, "generator must be a torch.Generator, .* got int"),
    ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be a whole number of at least 1, got 0"),
    ({"output_type": "jpg"}, "output_type has 'jpg'; known: pil, np, pt, latent"),
    ({"use_cache": "no"}, "use_cache must be True, False or 'window', got 'no'"),
    ({"use_cache": 1}, "use_cache must be True, False or 'window', got 1"),
    ({"cache_refresh": 0}, "cache_refresh must be 'never', 'always' or a number of chunks of at least 1, got 0"),
    ({"cache_refresh": "often"}, "cache_refresh must be .* got 'often'"),
    ({"cache_refresh": 2, "use_cache": False}, "cache_refresh must be 'never' without a cache, got 2"),
    ({"layout": "paged"}, "layout must be dynamic or static, got 'paged'"),
    ({"context_noise": 1.5}, "context_noise must be a standard deviation from 0 to 1, got 1.5"),
    ({"context_noise": None}, "context_noise must be a standard deviation from 0 to 1, got None"),
    ({"first_frame": -1}, "first_frame must be a whole number of at least 0, got -1"),
    ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]}, "has 'noise'; known: latents"),
]


@pytest.mark.parametrize(("arguments", "pattern"), CALLS, ids=[pattern[:40] for _, pattern in CALLS])
def test_a_call_names_what_is_wrong(tiny_video_pipeline, refuses, arguments, pattern):
    pipe = tiny_video_pipeline()
    refuses(pipe, pattern, lambda: pipe(**{"num_frames": 6, **arguments}))
    if not {"output_type", "callback_on_step_end_tensor_inputs"} & set(arguments) and arguments.get("num_frames", 6):
        refuses(pipe, pattern, lambda: pipe.stream(**{"num_frames": 6, **arguments}))


def test_an_unknown_option_is_a_type_error(tiny_video_pipeline, refuses):
    pipe = tiny_video_pipeline()
    refuses(pipe, "unexpected keyword argument 'sinks'", lambda: pipe(num_frames=3, sinks=1), TypeError)


SETTINGS = [
    ({"p_empty": 0.0}, {}, "pass image, video or latents: this checkpoint needs at least one given frame"),
    ({"attention_mode": "block_causal"}, {"chunk_size": 1}, "chunk_size must be 2, as in training: .* got 1"),
    ({"attention_mode": "block_causal"}, {"video": frames(1, 4)}, "video must be 1 .* as 3 or 5, got 4"),
    ({"attention_mode": "block_causal"}, {"latents": frames(1, 2)}, "latents must be 1 .* as 1 or 3, got 2"),
    ({"attention_mode": "full"}, {}, "use_cache must be .* bidirectional attention cannot be cached, got True"),
    ({"attention_mode": "full"}, {"use_cache": False, "cache_refresh": 1}, "cache_refresh must be 'never' without"),
    ({"pos": "cyclic"}, {"context_frames": 6}, "at most 5: with chunk_size 2 .* cycle of 7 positions, got 6"),
    ({"pos": "cyclic"}, {"sink_frames": 1}, "sink_frames must be 0 with cyclic positions, got 1: what a sink says"),
    ({"num_classes": 0}, {"class_labels": 0}, "class_labels must be None: the model knows no classes, got 0"),
    ({"num_classes": 0}, {"guidance_scale": 3}, "guidance_scale must be 1 without a class or a text"),
]


@pytest.mark.parametrize(("settings", "arguments", "pattern"), SETTINGS, ids=[row[2][:40] for row in SETTINGS])
def test_a_call_that_does_not_fit_the_model(tiny_video_pipeline, refuses, settings, arguments, pattern):
    pipe = tiny_video_pipeline(**settings)
    refuses(pipe, pattern, lambda: pipe(num_frames=9, **arguments))
    refuses(pipe, pattern, lambda: pipe.start(**arguments))


class Encoder(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask):
        raise AssertionError("was called")


TEXTS = [
    ({}, "exactly one of prompt and prompt_embeds"),
    ({"prompt": "a", "prompt_embeds": torch.zeros(1, 3, 12)}, "exactly one of prompt and prompt_embeds"),
    ({"prompt": ["a", "b"], "image": frames(3)}, "prompt must hold one text for each of 3 videos, got 2"),
    ({"prompt": [], "image": frames(1)}, "prompt must hold one text for each of 1 videos, got 0"),
    ({"prompt": ["a", 3]}, "prompt must be a text or a list of texts, got 3 in it"),
    ({"prompt": "a", "negative_prompt": ["b", "c"]}, "negative_prompt must hold one text for each of 1 videos, got 2"),
    ({"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 2, 12)}, "exactly one of neg"),
    ({"prompt": "a", "guidance_scale": -2}, "guidance_scale must be finite and at least 0, got -2"),
    ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, "one generator for each of 2 videos, got 1"),
    ({"prompt_embeds": torch.zeros(1, 3, 13)}, r"prompt_embeds must be \(B, L, 12\), got \(1, 3, 13\)"),
    ({"prompt_embeds": [[0.0]]}, r"prompt_embeds must be \(B, L, 12\), got list"),
    (
        {"prompt_embeds": torch.zeros(2, 3, 12), "prompt_attention_mask": torch.ones(2, 4)},
        r"prompt_attention_mask must be \(2, 3\), got \(2, 4\)",
    ),
    (
        {"prompt_embeds": torch.zeros(2, 3, 12), "prompt_attention_mask": torch.tensor([[1, 0, 0], [0, 0, 0]])},
        "prompt_attention_mask must leave each text a token, got none for text 1",
    ),
    ({"prompt": "a", "prompt_attention_mask": torch.ones(1, 3)}, "prompt_attention_mask belongs to prompt_embeds"),
]


@pytest.mark.parametrize(("arguments", "pattern"), TEXTS, ids=[pattern[:40] for _, pattern in TEXTS])
def test_texts_are_counted_before_any_is_encoded(tiny_video_pipeline, refuses, arguments, pattern):
    pipe = tiny_video_pipeline(num_classes=0, cross_attention_dim=12)
    pipe.tokenizer, pipe.text_encoder = object(), Encoder()
    refuses(pipe, pattern, lambda: pipe(num_frames=4, **arguments))


def test_a_prompt_needs_an_encoder(tiny_video_pipeline, refuses):
    pipe = tiny_video_pipeline(num_classes=0, cross_attention_dim=12)
    refuses(pipe, "tokenizer and text_encoder; pass prompt_embeds instead", lambda: pipe(prompt="a", num_frames=3))


SCHEDULERS = [
    (ScoreSdeVeScheduler(), "scheduler must be .* FlowMatchEulerDiscreteScheduler, DDIMScheduler.* got ScoreSdeVe"),
    (EDICTScheduler(), "scheduler must be .* one tensor .* got EDICTScheduler"),
    (DDIMScheduler(prediction_type="score"), "prediction_type must be one of epsilon, .* got 'score'"),
    (DDPMScheduler(variance_type="learned_range"), "variance_type must be fixed, .* got 'learned_range'"),
    (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting must be False.* got True"),
]


@pytest.mark.parametrize(("scheduler", "pattern"), SCHEDULERS, ids=[row[1][:40] for row in SCHEDULERS])
def test_a_scheduler_that_cannot_walk_a_chunk(tiny_video_pipeline, refuses, scheduler, pattern):
    pipe = tiny_video_pipeline(scheduler)
    refuses(pipe, pattern, lambda: pipe(num_frames=3))


def test_more_than_in_training_is_a_warning(tiny_video_pipeline):
    pipe = tiny_video_pipeline()
    with pytest.warns(UserWarning, match="chunk_size 3 is above 2 of training"):
        pipe.start(chunk_size=3)
    with pytest.warns(UserWarning, match="context_frames 6 is above the 5 of training"):
        pipe.start(context_frames=6)


SESSION = [
    (lambda s: s.generate(0), "num_frames .* at least 1, got 0"),
    (lambda s: s.generate(2, output_type="gif"), "output_type has 'gif'"),
    (lambda s: s.generate(2, guidance_scale=2.0), r"no unconditional cache.* start a new one or call recache"),
    (lambda s: s.recache(guidance_scale=-1), "guidance_scale must be finite and at least 0, got -1"),
    (lambda s: s.set_condition(class_labels=[0, 1, 2]), "class_labels must hold one class for each of 2 videos, got 3"),
    (lambda s: s.append(), "append needs one of video, image and latents, got none"),
    (lambda s: s.append(image=frames(2), latents=frames(2, 1)), "exactly one of image, video and latents"),
    (lambda s: s.append(image=frames(3)), "image must keep the session's batch of 2 videos, got 3"),
    (lambda s: s.append(video=torch.rand(2, 1, 1, 8, 8)), r"video: expected \(B,T,1,16,8\), got \(2,1,1,8,8\)"),
    (lambda s: s.append(video=frames(2, 1).byte()), "video must hold floats"),
    (lambda s: s.append(latents=frames(2, 1).to("meta")), "latents must be on cpu, .* got meta"),
    (lambda s: s.fork(generator=[torch.Generator()]), "one generator for each of 2 videos, got 1"),
    (lambda s: s.fork(generator=0), "generator must be a torch.Generator, .* got int"),
]


@pytest.mark.parametrize(("act", "pattern"), SESSION, ids=[row[1][:40] for row in SESSION])
def test_a_session_refuses_and_goes_on(tiny_video_pipeline, refuses, act, pattern):
    pipe = tiny_video_pipeline()
    options = {"class_labels": [0, 1], "num_inference_steps": 1, "latents": frames(2, 3)}
    session, other = (pipe.start(generator=torch.Generator().manual_seed(0), **options) for _ in range(2))
    refuses(pipe, pattern, lambda: act(session))
    assert torch.equal(session.generate(2).frames, other.generate(2).frames)


def test_guidance_needs_a_condition_in_a_session(tiny_video_pipeline, refuses):
    pipe = tiny_video_pipeline()
    session = pipe.start(num_inference_steps=1)
    refuses(pipe, "guidance_scale must be 1 without a class", lambda: session.recache(guidance_scale=2.0))
    session.set_condition(class_labels="two")
    session.recache(guidance_scale=2.0)
    assert session.generate(3, guidance_scale=3.0).stats.network_calls == 8


def test_a_chunk_cut_short_cannot_be_continued_where_it_must_be_whole(tiny_video_pipeline, refuses):
    pipe = tiny_video_pipeline(attention_mode="block_causal")
    session = pipe.start(num_inference_steps=1, latents=frames(1, 3))
    point = session.snapshot()
    assert session.generate(3).frames.shape[1] == 3
    pattern = "cut a chunk of 2 short, and block_causal .* restore a snapshot"
    refuses(pipe, pattern, lambda: session.generate(2))
    refuses(pipe, pattern, lambda: session.append(video=frames(1, 2)))
    refuses(pipe, "video must be a multiple of 2 .* as 2 or 4, got 3", lambda: pipe_append(session, point, 3))
    assert session.generate(4).frames.shape[1] == 4


def pipe_append(session, point, count):
    session.restore(point)
    session.append(video=frames(1, count))


@pytest.mark.parametrize(
    "change",
    [
        {"context_frames": 4},
        {"sink_frames": 1},
        {"chunk_size": 1},
        {"class_labels": [0, 1]},
        {"num_inference_steps": 2},
        {"use_cache": False},
    ],
)
def test_a_snapshot_of_another_session_is_refused(tiny_video_pipeline, refuses, change):
    pipe = tiny_video_pipeline()
    base = {"class_labels": 0, "num_inference_steps": 1}
    point = pipe.start(**{**base, **change}).snapshot()
    session = pipe.start(**base)
    refuses(pipe, "snapshot has fingerprint [0-9a-f]{16}, this session", lambda: session.restore(point))


def test_a_snapshot_of_another_model_or_scheduler_is_refused(tiny_video_pipeline, refuses):
    pipe = tiny_video_pipeline()
    point = pipe.start().snapshot()
    others = [
        tiny_video_pipeline(num_layers=3),
        tiny_video_pipeline(DDIMScheduler()),
        tiny_video_pipeline(dtype=torch.float64),
        tiny_video_pipeline(),
    ]
    with torch.no_grad():
        others[-1].transformer.patch_in.weight += 0.1  # trained further, with the config it had
    for other in others:
        session = other.start()
        refuses(other, "snapshot has fingerprint", lambda session=session: session.restore(point))
    tiny_video_pipeline().start().restore(point)  # an equal model in another object will do
    several = pipe.start(generator=[torch.Generator()])
    several.restore(point)
    two = pipe.start(class_labels=[0, 1], generator=[torch.Generator(), torch.Generator()])
    single = pipe.start(class_labels=[0, 1])
    refuses(pipe, "snapshot has 1 generators, this session 2", lambda: two.restore(single.snapshot()))


def test_the_past_keeps_its_contract(tiny_video_pipeline):
    pipe = tiny_video_pipeline()
    session = pipe.start(class_labels=[0, 1], num_inference_steps=1)
    conditions = session.snapshot().past.conditions
    past = Past(pipe.transformer, session.rollout, conditions, 1.0, torch.empty(2, 0, *SHAPE))
    with torch.no_grad():
        past.write(frames(2, 2), [0, 1], Meter())
        with pytest.raises(RuntimeError, match="frame index must go on with 2, got 3"):
            past.write(frames(2, 2), [3, 4], Meter())
        with pytest.raises(RuntimeError, match="frame index must go on with 2, got 1"):
            past.predictors([1, 2], Meter())
        past.branches[0].cache = pipe.transformer.make_cache(5, 2)
        with pytest.raises(RuntimeError, match="a cache holds 0 frames where 2 are finished"):
            past.predictors([2, 3], Meter())
    assert isinstance(past.context, Context) and past.context.index == (0, 1)
