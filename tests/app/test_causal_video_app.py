"""Causal video for people: files that play, first frames from files, and the gallery's chapter."""

from __future__ import annotations

import io
import re
import runpy
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app.causal_video_pictures import fork, fork_picture, side_by_side
from gendiff.app.causal_video_timing import seconds_by_frame
from gendiff.app.gallery import build_gallery
from gendiff.app.interruption import ended_by_signals
from gendiff.app.line_chart import line_chart
from gendiff.app.section import Settings
from gendiff.app.video_files import gif_bytes, pictures, write_gif, write_mp4
from gendiff.app.video_inputs import fitted, read_picture, read_video
from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.errors import InvalidInputError
from gendiff.pipelines import registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def played(content: bytes) -> tuple[np.ndarray, list[int]]:
    """Frames (T, H, W, 3) of a GIF, and how many milliseconds each is shown."""
    frames, times = [], []
    with Image.open(io.BytesIO(content), formats=["GIF"]) as picture:
        assert picture.info["loop"] == 0
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
            times.append(picture.info["duration"])
    return np.stack(frames), times


def decoded(content: bytes) -> np.ndarray:
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


@pytest.mark.parametrize("scale", [1, 3])
def test_a_gif_of_grey_frames_is_exact_and_keeps_frames_that_repeat(scale):
    video = noise(7, 1, 10, 12)
    video[3] = video[2]
    frames, times = played(gif_bytes(video, 8, scale))
    assert frames.shape == (7, 10 * scale, 12 * scale, 3)
    wanted = video.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1).numpy()
    assert (frames == wanted).all()
    assert abs(sum(times) - 7 * 125) <= 5 and set(times) == {120, 130}


def test_a_gif_of_few_colours_is_exact():
    video = noise(3, 3, 15, 16)
    frames, _ = played(gif_bytes(video.float() / 255))
    assert (frames == video.permute(0, 2, 3, 1).numpy()).all()


def test_an_mp4_shows_every_frame_with_even_sides(tmp_path):
    levels = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 1, 9, 7)
    write_mp4(tmp_path / "a.mp4", pictures(levels), fps=12.5)
    frames = decoded((tmp_path / "a.mp4").read_bytes())
    assert frames.shape == (6, 10, 8, 3)
    assert np.abs(frames - 255 * levels.numpy()[:, 0, :1, :1, None]).max() < 4


def test_files_are_whole_or_not_there(tmp_path):
    def broken():
        yield from pictures(noise(2, 1, 8, 8))
        raise OSError("lost")

    for write, name in ((write_gif, "a.gif"), (write_mp4, "a.mp4")):
        with pytest.raises(OSError, match="lost"):
            write(tmp_path / name, broken(), 8)
    assert not list(tmp_path.iterdir())
    write_gif(tmp_path / "a.gif", pictures(noise(2, 1, 8, 8)), 8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("fps", [0, -1, 51, float("nan"), True])
def test_bad_rates(fps, tmp_path):
    for write in (write_gif, write_mp4):
        with pytest.raises(ValueError, match="fps must be a number above 0 and up to 50"):
            write(tmp_path / "a", pictures(noise(2, 1, 8, 8)), fps)


def test_no_frames_or_of_two_sizes(tmp_path):
    for write in (write_gif, write_mp4):
        with pytest.raises(ValueError, match="frames must not be empty"):
            write(tmp_path / "a", [], 8)
        with pytest.raises(ValueError, match="one size and mode: frame 1"):
            write(tmp_path / "a", pictures([noise(1, 8, 8), noise(1, 8, 10)]), 8)


def test_without_pyav_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"gendiff\[video\]"):
        write_mp4(tmp_path / "a.mp4", pictures(noise(2, 1, 8, 8)), 8)


def test_videos_are_read_from_all_kinds_of_files(tmp_path):
    video = noise(3, 1, 8, 10)
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures(video)):
        picture.save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "clip.gif").write_bytes(gif_bytes(video))
    np.save(tmp_path / "clip.npy", video[:, 0].numpy())
    for name in ("frames", "clip.gif", "clip.npy"):
        frames = read_video(tmp_path / name)
        assert (np.stack([np.asarray(frame.convert("L")) for frame in frames]) == video[:, 0].numpy()).all()
    write_mp4(tmp_path / "clip.mp4", pictures(video, scale=4), 8)
    assert [frame.size for frame in read_video(tmp_path / "clip.mp4")] == [(40, 32)] * 3
    (fit,) = fitted(read_video(tmp_path / "clip.mp4")[:1], (1, 8, 8))
    assert fit.size == (8, 8) and fit.mode == "L"


def test_what_is_no_video(tmp_path):
    (tmp_path / "notes.txt").write_text("no video")
    np.save(tmp_path / "many.npy", np.zeros((2, 3, 8, 8, 1), np.uint8))
    with pytest.raises(InvalidInputError, match=r"notes.txt must be a folder of pictures or one of .npy"):
        read_video(tmp_path / "notes.txt")
    with pytest.raises(InvalidInputError, match="holds 2 videos"):
        read_video(tmp_path / "many.npy")
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "nothing.gif")
    with pytest.raises(ValueError, match=r"notes.txt is not a picture"):
        read_picture(tmp_path / "notes.txt")


def test_the_first_signal_is_caught_and_the_second_is_not():
    handler = signal.getsignal(signal.SIGTERM)
    with ended_by_signals() as ended:
        assert not ended()
        signal.raise_signal(signal.SIGTERM)
        assert ended()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_threads_cannot_catch_signals():
    said = []

    def work():
        with ended_by_signals() as ended:
            said.append(ended())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]


def test_videos_side_by_side():
    videos = torch.rand(3, 4, 1, 6, 5)
    sheet = side_by_side(videos, 2)
    assert sheet.shape == (4, 1, 2 * 6 + 2, 2 * 5 + 2)
    assert torch.equal(sheet[..., :6, 7:], videos[1]) and torch.equal(sheet[..., 8:, :5], videos[2])
    assert sheet[..., 6:8, :].unique().numel() == 1


def test_futures_share_their_past_and_nothing_else(tiny_video_pipeline):
    pipe = tiny_video_pipeline()
    options = {"class_labels": "two", "num_inference_steps": 2}
    past, futures = fork(pipe, 4, seed=5, **options)
    assert past.shape == (1, 1, 16, 8) and futures.shape == (3, 4, 1, 16, 8)
    assert (futures[0] - futures[1]).abs().max() > 0.01
    # Each is what the pipeline makes of the same frame and the same noise.
    given = torch.rand(1, 16, 8, generator=torch.Generator().manual_seed(0))
    kept, others = fork(pipe, 4, seed=5, image=given, **options)
    alone = pipe(image=given, num_frames=5, generator=torch.Generator().manual_seed(7), output_type="pt", **options)
    assert torch.allclose(kept[0], given) and torch.allclose(alone.frames[0, 1:], others[1], atol=1e-4)
    picture = fork_picture(past, futures, every=2, scale=2)
    assert picture.width > 3 * 16 and picture.height > 3 * 32


def test_time_is_told_for_each_chunk(tiny_video_pipeline):
    ends, seconds = seconds_by_frame(tiny_video_pipeline(), True, num_frames=6, steps=2)
    assert ends == [2, 4, 5] and all(second > 0 for second in seconds)


def test_a_chart_shows_its_curves():
    chart = line_chart({"slow <1>": ([1, 2, 3], [0.5, 1.0, 1.5]), "fast": ([1, 2, 3], [0.1, 0.1, 0.1])}, "frame", "s")
    assert "slow &lt;1&gt;" in chart and chart.count("<polyline") == 2 and chart.count("<circle") == 6
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', chart)]
    assert heights[0] > heights[1] > heights[2] and heights[3] == heights[5]
    for bad in ({}, {"a": ([], [])}, {"a": ([1], [1, 2])}, {"a": ([1], [float("nan")])}, {"a": ([1], [-1.0])}):
        with pytest.raises(ValueError, match="curves must"):
            line_chart(bad, "x", "y")


@pytest.fixture
def installed(tmp_path, monkeypatch, tiny_video_pipeline):
    """An installation of an untrained model of balls of 16 px, and one of classes whose data is not there."""
    balls, classes = tmp_path / "checkpoints" / "balls", tmp_path / "checkpoints" / "classes"
    small = {"sample_size": 16, "num_layers": 1, "num_attention_heads": 2}
    tiny_video_pipeline(num_classes=0, **small).save_pretrained(balls)
    tiny_video_pipeline(**small).save_pretrained(classes)
    (balls / "recipe.yaml").write_text("data: {name: bouncing-balls, size: 16, num_frames: 9}\n")
    (classes / "recipe.yaml").write_text("data: {name: moving-digits, root: nowhere}\n")
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    for name, value in (("section.FRAMES", 9), ("section.FUTURE", 8), ("timing.FRAMES", 5), ("physics.FOLLOWED", 8)):
        monkeypatch.setattr(f"gendiff.app.causal_video_{name}", value)
    return tmp_path


def test_the_chapter_shows_rollouts_futures_physics_and_times(installed):
    stages = []
    page = build_gallery(Settings(installed / "demo", steps=1, num_images=2), stages.append).read_text("utf-8")
    for name in ("balls", "classes"):
        assert f'id="{name}"' in page
        assert {path.name for path in (installed / "demo" / name).iterdir()} == {"rollout.gif", "fork.gif", "fork.png"}
    assert page.count('src="data:image/gif;base64,') == 4 and page.count('<svg class="chart"') == 2
    assert page.count("Against the simulator") == 1, "only balls have one"
    assert page.count("Frame 0, of a test video") == page.count("Frame 0, drawn from nothing") == 1
    assert page.count("brightness of frames 0") == 2
    assert "three" in page and "--class two" in page and page.count("Future 3") == 2
    frames, _ = played((installed / "demo" / "balls" / "rollout.gif").read_bytes())
    assert len(frames) == 9
    assert any("simulator" in stage for stage in stages)
    (row,) = re.findall(r"simulator</th><td>(\d+) %</td><td>([\d.]+) %", page)
    assert (int(row[0]), float(row[1])) == (100, 0), "what the simulator makes is what is looked for"


def test_simulated_videos_of_any_length_begin_as_those_of_the_data():
    from gendiff.app.causal_video_physics import _simulated

    balls = BouncingBalls("test", num_frames=6, size=16)
    assert torch.allclose(_simulated(balls, 3, 9)[:6], balls[3]["video"] / 2 + 0.5, atol=1e-4)


def test_the_figure_of_the_readme(installed, monkeypatch):
    out = installed / "figure.png"
    options = ["--model", str(installed / "checkpoints" / "balls"), "--num-frames", "4", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["causal_video_figure.py", *options, "--out", str(out)])
    runpy.run_path(str(BENCHMARKS / "causal_video_figure.py"), run_name="__main__")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.height > 2 * 3 * 32
