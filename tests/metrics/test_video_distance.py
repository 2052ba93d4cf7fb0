from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gendiff.errors import InvalidInputError, MetricWarning, UnsafeFileError
from gendiff.metrics.extractors.base import FeatureExtractor
from gendiff.metrics.frechet import frechet_distance
from gendiff.metrics.video_distance import video_distance

pytestmark = pytest.mark.filterwarnings("ignore::gendiff.errors.MetricWarning")

FRAMES, SIDE = 10, 32


class MeanAndMotion(FeatureExtractor):
    """Means of colours over a clip and of their change: small enough to be worked out by hand."""

    def __init__(self, id: str = "mean-and-motion") -> None:
        super().__init__(id, 6, "as it is", video=True)

    def extract(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.ndim == 5 and images.shape[2] == 3
        colours = images.float()
        motion = colours.diff(dim=1).abs()
        return torch.cat([colours.mean((1, 3, 4)), motion.mean((1, 3, 4))], dim=1)


def bouncing_squares(count, seed, frames=FRAMES, channels=1):
    """uint8 (N, F, C, H, W): a textured square that moves by a constant velocity and bounces at the walls."""
    generator = torch.Generator().manual_seed(seed)
    videos = torch.zeros(count, frames, channels, SIDE, SIDE, dtype=torch.uint8)
    for n in range(count):
        texture = torch.randint(60, 256, (channels, 10, 10), generator=generator, dtype=torch.uint8)
        place = torch.rand(2, generator=generator) * (SIDE - 10)
        velocity = 1.5 + 2 * torch.rand(2, generator=generator)
        for k in range(frames):
            position = (place + k * velocity) % (2 * (SIDE - 10))
            y, x = (SIDE - 10 - (position - (SIDE - 10)).abs()).long().tolist()
            videos[n, k, :, y : y + 10, x : x + 10] = texture
    return videos


@pytest.fixture(scope="module")
def tiny():
    return MeanAndMotion()


def test_frozen_and_shuffled_videos_move_the_distance():
    """The same pictures in another order are no more like real video: what a frame-wise distance cannot see."""
    reference, samples = bouncing_squares(12, 0), bouncing_squares(12, 1)
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0))
    variants = {
        "real": samples,
        "frozen": samples[:, :1].expand(-1, FRAMES, -1, -1, -1),
        "shuffled": samples[:, order],
    }
    results = {name: video_distance(videos, reference, frames=FRAMES) for name, videos in variants.items()}
    assert results["frozen"].value > 3 * results["real"].value
    assert results["shuffled"].value > 1.3 * results["real"].value
    for result in results.values():
        assert result.label == "FD[lite0-video]" and result.dim == 224
        assert result.weights_sha256 is not None and len(result.weights_sha256) == 64


def test_the_distance_grows_as_videos_drift():
    reference, samples = bouncing_squares(6, 0), bouncing_squares(6, 1)
    frame = torch.arange(FRAMES)[:, None, None, None]
    values = []
    for levels in (0, 2, 8):
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(2)) * levels * frame
        values.append(video_distance((samples + noise).clamp(0, 255).byte(), reference, frames=FRAMES).value)
    assert values[0] < values[1] < values[2]


def test_the_value_is_the_frechet_distance_of_the_features(tiny):
    samples, reference = bouncing_squares(9, 1, channels=3), bouncing_squares(7, 0, channels=3)
    with pytest.warns(MetricWarning, match="N=7"):
        result = video_distance(samples, reference, tiny, frames=4, stride=2, batch_size=4)
    cut = [videos[:, [0, 2, 4, 6]] for videos in (samples, reference)]
    expected = frechet_distance(*(tiny(videos) for videos in cut))
    assert result.value == pytest.approx(expected.value, rel=1e-5)
    assert result.mean_term + result.cov_term == pytest.approx(result.value)
    assert (result.n_samples, result.n_reference, result.frames, result.stride) == (9, 7, 4, 2)
    assert result.samples_sha256 == hashlib.sha256(cut[0].numpy().tobytes()).hexdigest()
    assert any("differ in number: 9 videos against 7 videos" in warning for warning in result.warnings)
    assert json.loads(json.dumps(result.to_dict()))["samples_size"] == [SIDE, SIDE]


def test_equal_sets_have_distance_zero_and_any_batch_size_the_same(tiny):
    videos, others = bouncing_squares(7, 0), bouncing_squares(7, 1)
    assert video_distance(videos, videos, tiny, frames=4).value == pytest.approx(0, abs=1e-6)
    first, second = (video_distance(videos, others, tiny, frames=4, batch_size=size) for size in (1, 7))
    assert first.value == pytest.approx(second.value, rel=1e-4)
    assert first.samples_sha256 == second.samples_sha256 != first.reference_sha256


class Videos(torch.utils.data.Dataset):
    def __init__(self, videos):
        self.videos = videos

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return {"video": self.videos[index]}


def write_frames(folder, videos, suffix=".png"):
    for n, video in enumerate(videos):
        (folder / f"video_{n}").mkdir(parents=True)
        for k, frame in enumerate(video):
            pixels = frame.permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            picture.save(folder / f"video_{n}" / f"{k}{suffix}")  # no leading zeros: 10 must come after 9
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_all_kinds_of_videos_give_the_same_clips(tiny, tmp_path, channels):
    videos = bouncing_squares(12, 0, frames=12, channels=channels)
    np.savez(tmp_path / "videos.npz", videos.permute(0, 1, 3, 4, 2).numpy())
    folder = write_frames(tmp_path / "frames", videos)
    kinds = [videos, videos.numpy(), Videos(videos / 127.5 - 1), folder, str(folder), tmp_path / "videos.npz"]
    results = [video_distance(kind, bouncing_squares(12, 1, 12), tiny, frames=12) for kind in kinds]
    assert len({result.samples_sha256 for result in results}) == 1
    assert len({result.value for result in results}) == 1


def test_a_folder_may_hold_video_files(tiny, tmp_path):
    videos = bouncing_squares(3, 0)
    folder = write_frames(tmp_path / "mixed", videos[:1])
    for n, video in enumerate(videos[1:], 1):
        frames = [Image.fromarray(frame[0].numpy()) for frame in video]
        frames[0].save(folder / f"video_{n}.gif", save_all=True, append_images=frames[1:])
    (folder / "notes.txt").write_text("not a video")
    result = video_distance(folder, videos, tiny, frames=FRAMES)
    assert result.samples_sha256 == result.reference_sha256
    assert "samples and reference differ in format: GIF+PNG against raw" in result.warnings
    (folder / "video_3.gif").write_bytes(b"not a video")
    with pytest.raises(InvalidInputError, match=r"samples: .*video_3\.gif cannot be read as \.gif"):
        video_distance(folder, videos, tiny, frames=FRAMES)


def test_num_takes_the_first_videos(tiny):
    videos, others = bouncing_squares(8, 0), bouncing_squares(8, 1)
    result = video_distance(videos, others, tiny, frames=4, num=5)
    assert result.value == video_distance(videos[:5], others[:5], tiny, frames=4).value
    assert result.n_samples == result.n_reference == 5
    with pytest.raises(InvalidInputError, match="num is 9, but samples holds 8 videos"):
        video_distance(videos, others, tiny, frames=4, num=9)


def test_differences_between_the_sides_are_said(tiny, tmp_path):
    videos = bouncing_squares(3, 0)
    folder = write_frames(tmp_path / "frames", videos[..., :16, :], ".jpg")
    result = video_distance(folder, videos, tiny, frames=4)
    assert [warning for warning in result.warnings if "differ" in warning] == [
        "samples and reference differ in size: 16x32 px against 32x32 px",
        "samples and reference differ in format: JPEG against raw",
    ]


def test_transparent_pixels_are_white(tiny, tmp_path):
    for n in range(2):
        (tmp_path / "a" / str(n)).mkdir(parents=True)
        for k in range(2):
            pixels = np.zeros((8, 8, 4), np.uint8)
            pixels[..., 3] = 255 * (np.arange(8) >= 4)
            Image.fromarray(pixels).save(tmp_path / "a" / str(n) / f"{k}.png")
    white = torch.zeros(2, 2, 3, 8, 8, dtype=torch.uint8)
    white[..., :4] = 255
    result = video_distance(tmp_path / "a", white, tiny, frames=2)
    assert result.samples_sha256 == result.reference_sha256


@pytest.mark.parametrize("name", ["i3d-videogpt", "i3d-styleganv"])
def test_too_few_frames_for_i3d_are_refused_before_weights_are_sought(name):
    videos = bouncing_squares(2, 0)
    with pytest.raises(InvalidInputError, match=f"frames must be at least 10 for {name}, got 9"):
        video_distance(videos, videos, name, frames=9)


def test_it_is_called_what_its_features_are_called(tiny):
    videos = bouncing_squares(3, 0)
    assert video_distance(videos, videos, tiny, frames=2).label == "FD[mean-and-motion]"
    named = MeanAndMotion()
    named.label = "FVD(variant)"
    assert video_distance(videos, videos, named, frames=2).label == "FVD(variant)"


def test_short_videos_are_named(tiny):
    videos = bouncing_squares(3, 0)
    with pytest.raises(InvalidInputError, match="samples: video 0 has 10 frames, 6 frames at stride 2 need 11"):
        video_distance(videos, videos, tiny, frames=6, stride=2)
    uneven = Videos([torch.zeros(10, 1, 8, 8), torch.zeros(7, 1, 8, 8)])
    with pytest.raises(InvalidInputError, match="reference: video 1 has 7 frames"):
        video_distance(videos, uneven, tiny, frames=8)


def test_an_extractor_of_images_is_refused(tiny):
    class Wrong(MeanAndMotion):
        def forward(self, images):
            return super().forward(images)[:, :3]

    videos = bouncing_squares(2, 0)
    with pytest.raises(InvalidInputError, match=r"must map 2 clips to \(2, 6\), got \(2, 3\): is it one for videos"):
        video_distance(videos, videos, Wrong(), frames=2)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (torch.zeros(2, 4, 1, 8, 8), "samples must be uint8, .* got torch.float32"),
        (torch.zeros(2, 4, 2, 8, 8, dtype=torch.uint8), r"C = 1 or 3 and not empty, got \(2, 4, 2, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"must be \(N, F, C, H, W\)"),
        (torch.zeros(1, 4, 1, 8, 8, dtype=torch.uint8), "samples must be at least 2 videos .* got 1"),
        (Videos(torch.zeros(0)), "samples is empty"),
        (Videos(torch.full((2, 4, 1, 8, 8), 255.0)), r"video 0 must lie in \[-1, 1\], got \[255, 255\]"),
        (Videos(torch.full((2, 4, 1, 8, 8), float("nan"))), r"must lie in \[-1, 1\], got \[nan, nan\]"),
        (Videos(torch.zeros(2, 4, 8, 8)), r"video 0 must be \(F, C, H, W\)"),
        ([1, 2], 'item 0 must be {"video"'),
        (3, "samples must be a uint8 tensor .* got int"),
        ("nowhere", "samples must be a folder of frame folders or an .npz file, got 'nowhere'"),
    ],
)
def test_what_is_no_set_of_videos(tiny, videos, message):
    with pytest.raises(InvalidInputError, match=message):
        video_distance(videos, bouncing_squares(2, 0), tiny, frames=2)


@pytest.mark.parametrize(
    "arguments", [{"frames": 1}, {"frames": 0}, {"stride": 0}, {"batch_size": 0}, {"num": 0}, {"frames": 2.0}]
)
def test_bad_numbers(tiny, arguments):
    videos = bouncing_squares(2, 0)
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        video_distance(videos, videos, tiny, **arguments)


def test_bad_folders(tiny, tmp_path):
    videos = bouncing_squares(2, 0)

    def measure(path):
        return video_distance(path, videos, tiny, frames=2)

    with pytest.raises(InvalidInputError, match="holds no folders of frames"):
        measure(tmp_path)
    folder = write_frames(tmp_path / "frames", videos)
    (folder / "video_2").mkdir()
    with pytest.raises(InvalidInputError, match="video_2 holds no frames"):
        measure(folder)
    (folder / "video_2" / "clip.mp4").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"holds clip\.mp4; decode videos to one folder of PNG frames"):
        measure(folder)
    (folder / "video_2" / "clip.mp4").rename(folder / "video_2" / "0.png")
    (folder / "video_2" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(InvalidInputError, match=r"0\.png cannot be read as an image"):
        measure(folder)
    Image.new("L", (16, 16)).save(folder / "video_2" / "0.png")
    Image.new("L", (16, 17)).save(folder / "video_2" / "1.png")
    with pytest.raises(InvalidInputError, match=r"16x17 px, .* 16x16 px; frames must have one size"):
        measure(folder)
    Image.new("L", (16, 16)).save(folder / "video_2" / "1.png")
    with pytest.raises(InvalidInputError, match=r"video 2 is \(16, 16\), video 0 is \(32, 32\)"):
        measure(folder)
    Image.new("I;16", (16, 16)).save(folder / "video_2" / "1.png")
    with pytest.raises(InvalidInputError, match=r"more than 8 bits"):
        measure(folder)


def test_bad_npz_files(tiny, tmp_path):
    videos, path = bouncing_squares(2, 0), tmp_path / "videos.npz"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InvalidInputError, match="holds other, but no arr_0"):
        video_distance(path, videos, tiny, frames=2)
    np.savez(path, np.array([{}], dtype=object))
    with pytest.raises(UnsafeFileError, match="pickled objects"):
        video_distance(path, videos, tiny, frames=2)
    np.savez(path, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=r"arr_0 of .* must be \(N, F, H, W, C\)"):
        video_distance(path, videos, tiny, frames=2)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InvalidInputError, match=r"cannot be read as \.npz"):
        video_distance(path, videos, tiny, frames=2)
