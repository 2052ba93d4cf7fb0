"""`gendiff sample causal-video`: a whole video, a stream that a person ends, and one line for what does not fit."""

from __future__ import annotations

import json
import signal
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import gendiff
from gendiff.cli import main
from gendiff.pipelines.causal_video_session import CausalVideoSession

STEPS = ("--steps", 2)


@pytest.fixture
def model(tmp_path, tiny_video_pipeline):
    folder = tmp_path / "model"
    tiny_video_pipeline().save_pretrained(folder)
    return folder


def sample(*arguments) -> int:
    return main(["sample", "causal-video", *(str(argument) for argument in arguments)])


def frames(out) -> np.ndarray:
    paths = sorted((out / "frames").iterdir())
    assert [path.name for path in paths] == [f"{number:04d}.png" for number in range(len(paths))]
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(float)


def shown(out) -> int:
    with Image.open(out / "video.gif") as picture:
        return picture.n_frames


def interrupt_after(monkeypatch, chunks, act):
    """Do `act` while chunk number `chunks` is made."""
    advance = CausalVideoSession._advance
    made = []

    def counting(session, *arguments, **options):
        made.append(session)
        if len(made) == chunks:
            act()
        return advance(session, *arguments, **options)

    monkeypatch.setattr(CausalVideoSession, "_advance", counting)


def test_a_video_is_what_the_pipeline_makes(model, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--num-frames", 6, "--seed", 3, "--class", "two", "--guidance-scale", 2, "--context", 3, "--fps", 5)
    assert sample("--model", model, "--out", out, *STEPS, *options) == 0
    assert {path.name for path in out.iterdir()} == {"frames", "video.gif", "video.mp4", "run.json"}
    run = json.loads((out / "run.json").read_text())
    assert run["arguments"]["seed"] == 3 and run["arguments"]["class_name"] == "two" and run["versions"]["torch"]
    chunks = run["stats"]["plan"]["chunks"]
    assert [chunk["frames"] for chunk in chunks] == [1, 2, 2, 1] and all(chunk["seconds"] > 0 for chunk in chunks)
    assert all(chunk["cache_bytes"] > 0 for chunk in chunks) and run["stats"]["plan"]["context_frames"] == 3
    pipe = gendiff.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    alone = pipe(
        "two",
        num_frames=6,
        num_inference_steps=2,
        guidance_scale=2.0,
        context_frames=3,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).frames
    assert np.abs(frames(out) - 255 * alone[0, ..., 0]).max() <= 0.51
    assert shown(out) == 6
    printed = capsys.readouterr().out
    assert "6 frames, 0 of them given, in 4 chunks" in printed and "video.mp4" in printed


def test_given_frames_are_part_of_the_video(model, tmp_path):
    first = np.random.default_rng(0).integers(0, 256, (3, 16, 8), np.uint8)
    Image.fromarray(first[0]).save(tmp_path / "first.png")
    np.save(tmp_path / "clip.npy", first)
    for out, count, given in (("a", 3, ("--image", "first.png")), ("b", 5, ("--video", "clip.npy"))):
        options = ("--num-frames", count, *STEPS, "--out", tmp_path / out)
        assert sample("--model", model, given[0], tmp_path / given[1], *options) == 0
    assert (frames(tmp_path / "a")[0] == first[0]).all() and len(frames(tmp_path / "a")) == 3
    assert (frames(tmp_path / "b")[:3] == first).all() and len(frames(tmp_path / "b")) == 5
    assert json.loads((tmp_path / "b" / "run.json").read_text())["given"] == 3


def test_without_cache_the_video_is_the_same(model, tmp_path):
    for name, options in (("cached", ()), ("slow", ("--no-cache",))):
        assert sample("--model", model, "--num-frames", 4, *STEPS, *options, "--out", tmp_path / name) == 0
    assert np.abs(frames(tmp_path / "cached") - frames(tmp_path / "slow")).max() <= 1
    slow = json.loads((tmp_path / "slow" / "run.json").read_text())
    assert slow["stats"]["plan"]["use_cache"] is False and slow["stats"]["cache_bytes"] == 0


def test_resize_brings_a_picture_to_the_size(model, tmp_path):
    Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / "large.png")
    given = ("--model", model, "--image", tmp_path / "large.png", "--num-frames", 3, *STEPS)
    assert sample(*given, "--resize", "--out", tmp_path / "out") == 0
    assert frames(tmp_path / "out").shape == (3, 16, 8)


def test_a_stream_is_the_same_video_and_a_line_for_each_chunk(model, tmp_path, capsys):
    for name, stream in (("whole", ()), ("stream", ("--stream",))):
        assert sample("--model", model, "--num-frames", 6, *STEPS, *stream, "--out", tmp_path / name) == 0
    assert (frames(tmp_path / "whole") == frames(tmp_path / "stream")).all()
    assert (tmp_path / "whole" / "video.gif").read_bytes() == (tmp_path / "stream" / "video.gif").read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("frames ")] == [
        *("frames 0-0", "frames 1-2", "frames 3-4", "frames 5-5")
    ]
    run = json.loads((tmp_path / "stream" / "run.json").read_text())
    assert [chunk["start"] for chunk in run["stats"]["plan"]["chunks"]] == [0, 1, 3, 5] and run["stopped"] is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_after_its_chunk(model, tmp_path, capsys, monkeypatch, number):
    interrupt_after(monkeypatch, 4, lambda: signal.raise_signal(number))
    out = tmp_path / "out"
    assert sample("--model", model, "--stream", *STEPS, "--out", out) == 0
    assert "stopped; what exists is kept: 7 frames" in capsys.readouterr().out
    assert len(frames(out)) == shown(out) == 7
    run = json.loads((out / "run.json").read_text())
    assert run["stopped"] is True and run["frames"] == 7 and len(run["stats"]["plan"]["chunks"]) == 4


def test_an_impatient_end_drops_the_chunk_in_the_making(model, tmp_path, capsys, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    interrupt_after(monkeypatch, 3, twice)
    out = tmp_path / "out"
    assert sample("--model", model, "--stream", *STEPS, "--out", out) == 0
    assert "stopped; what exists is kept: 3 frames" in capsys.readouterr().out
    assert len(frames(out)) == shown(out) == 3 and (out / "video.mp4").is_file()


def test_an_end_before_the_first_frame_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    interrupt_after(monkeypatch, 1, interrupt)
    assert sample("--model", model, "--stream", *STEPS, "--out", tmp_path / "new" / "out") == 130
    assert not (tmp_path / "new").exists()


def test_a_whole_video_that_is_interrupted_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    interrupt_after(monkeypatch, 2, interrupt)
    assert sample("--model", model, *STEPS, "--out", tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()


def test_a_stream_keeps_no_frames(model, tmp_path, monkeypatch):
    """Memory does not grow: chunks that were written are let go."""
    alive, most = [], []
    advance = CausalVideoSession._advance

    def watched(session, *arguments, **options):
        chunk = advance(session, *arguments, **options)
        alive.append(weakref.ref(chunk))
        most.append(sum(one() is not None for one in alive))
        return chunk

    monkeypatch.setattr(CausalVideoSession, "_advance", watched)
    assert sample("--model", model, "--stream", "--num-frames", 21, "--steps", 1, "--out", tmp_path / "out") == 0
    assert len(most) == 11 and max(most) <= 2


def test_a_shorter_video_replaces_a_longer_one(model, tmp_path):
    out = tmp_path / "out"
    for count, stream in ((6, ()), (3, ("--stream",)), (2, ())):
        assert sample("--model", model, "--num-frames", count, *STEPS, *stream, "--out", out) == 0
        assert len(frames(out)) == shown(out) == count


def test_frames_of_something_else_are_left_alone(model, tmp_path, capsys):
    (tmp_path / "mine" / "frames").mkdir(parents=True)
    Image.new("L", (8, 16)).save(tmp_path / "mine" / "frames" / "0000.png")
    before = (tmp_path / "mine" / "frames" / "0000.png").read_bytes()
    assert sample("--model", model, *STEPS, "--out", tmp_path / "mine") == 2
    assert "holds files of something else" in capsys.readouterr().err
    clip = tmp_path / "mine" / "frames"
    assert sample("--model", model, "--video", clip, *STEPS, "--out", tmp_path / "mine") == 2
    assert "would write over" in capsys.readouterr().err
    assert [path.read_bytes() for path in clip.iterdir()] == [before]


@pytest.mark.filterwarnings("default:video.mp4 is left out")
def test_without_pyav_the_mp4_is_left_out(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gendiff.app.causal_video_folder.can_write_mp4", lambda: False)
    out = tmp_path / "out"
    assert sample("--model", model, "--num-frames", 2, *STEPS, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"frames", "video.gif", "run.json"}
    written = capsys.readouterr()
    assert "gendiff[video]" in written.err and "video.mp4" not in written.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-frames", "0"), "--num-frames counts the 0 given frames and must be at least 1, got 0"),
        (("--steps", "0"), "num_inference_steps must be a whole number from 1"),
        (("--chunk", "0"), "chunk_size must be a whole number of at least 1, got 0"),
        (("--context", "0"), "context_frames must be a whole number of at least 1"),
        (("--sinks", "5"), "sink_frames must be below context_frames"),
        (("--refresh", "often"), "--refresh must be never, always or a whole number of chunks"),
        (("--refresh", "0"), "--refresh must be never, always or a whole number of chunks"),
        (("--refresh", "always", "--no-cache"), "cache_refresh must be 'never' without a cache"),
        (("--class", "tow"), "Did you mean 'two'"),
        (("--class", "3"), "class_labels must be 0 to 2"),
        (("--guidance-scale", "-1"), "guidance_scale must be finite and at least 0"),
        (("--guidance-scale", "2"), "guidance_scale must be 1 without a class"),
        (("--fps", "0"), "fps must be a number above 0"),
        (("--image", "a.png", "--video", "b.gif"), "give --image or --video, not both"),
        (("--image", "missing.png"), "missing.png"),
        (("--video", "missing.gif"), "missing.gif"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(model, tmp_path, capsys, arguments, message):
    assert sample("--model", model, "--out", tmp_path / "new" / "out", "--num-frames", 4, *arguments) == 2
    written = capsys.readouterr()
    lines = [line for line in written.err.splitlines() if line.startswith("gendiff")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in written.err
    assert not (tmp_path / "new").exists()


def test_nothing_is_resized_silently(model, tmp_path, capsys):
    Image.new("L", (32, 32)).save(tmp_path / "large.png")
    assert sample("--model", model, "--image", tmp_path / "large.png", "--out", tmp_path / "out") == 2
    assert "expected (B,1,16,8), got (1,1,32,32)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_given_frames_that_fill_the_video(model, tmp_path, capsys):
    np.save(tmp_path / "clip.npy", np.zeros((3, 16, 8), np.uint8))
    given = ("--model", model, "--video", tmp_path / "clip.npy")
    assert sample(*given, "--num-frames", 3, "--out", tmp_path / "out") == 2
    assert "--num-frames counts the 3 given frames and must be at least 4, got 3" in capsys.readouterr().err


def test_a_model_that_cannot_start_from_nothing_says_so(tmp_path, capsys, tiny_video_pipeline):
    tiny_video_pipeline(p_empty=0.0).save_pretrained(tmp_path / "model")
    assert sample("--model", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert "this checkpoint needs at least one given frame" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
