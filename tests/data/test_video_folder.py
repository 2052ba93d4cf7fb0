from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.data import load_dataset
from gendiff.errors import InvalidInputError, UnsafeFileError

NAME = "video-folder"
CONTAINERS = {".mp4": "mpeg4", ".avi": "mpeg4", ".mkv": "mpeg4", ".webm": "libvpx", ".mov": "mpeg4"}


def video_bytes(frames=12, height=8, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, channels)).astype(np.uint8)


def write_frames(folder, video):
    folder.mkdir(parents=True)
    for k, frame in enumerate(video):
        Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame).save(folder / f"{k}.png")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def levels(count):
    """Grey levels of frames that survive lossy compression."""
    return [20 + 215 * k // count for k in range(count)]


def write_encoded(path, count=40, side=32, codec=None):
    """Frames of one grey level each, with key frames every 12 and frames that refer to later ones between."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CONTAINERS[path.suffix], rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 10_000_000
        if stream.codec_context.codec.name != "libvpx":
            stream.codec_context.max_b_frames = 2
        for level in levels(count):
            picture = av.VideoFrame.from_ndarray(np.full((side, side, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def decoded(item):
    return ((item["video"] + 1) * 127.5).round().to(torch.uint8)


def test_folders_of_frames(tmp_path):
    videos = [video_bytes(seed=seed) for seed in range(2)]
    for number, video in enumerate(videos):
        write_frames(tmp_path / "train" / f"video_{number}", video)  # no leading zeros: 10 must come after 9
    (tmp_path / "train" / "notes.txt").write_text("not a video")
    data = load_dataset(NAME, root=tmp_path, num_frames=4, size=None)
    assert len(data) == 6 and data.frame_shape == (3, 8, 8) and data.classes == () and data.num_frames == 4
    assert data.clips[4] == (str(tmp_path / "train" / "video_1"), 4)
    assert data[0]["video"].shape == (4, 3, 8, 8) and data[0]["video"].dtype == torch.float32
    together = torch.cat([decoded(data[index]) for index in range(6)])
    assert torch.equal(together, torch.from_numpy(np.concatenate(videos)).permute(0, 3, 1, 2))
    assert torch.equal(data[-1]["video"], data[5]["video"])
    with pytest.raises(IndexError, match="index 6 is outside a dataset of 6 clips"):
        data[6]


@pytest.mark.parametrize(("frames", "num_frames", "stride", "starts"), [
    (12, 4, 1, [0, 4, 8]), (12, 5, 1, [0, 5]), (12, 3, 2, [0, 6]), (11, 3, 2, [0, 6]), (10, 3, 2, [0]), (9, 3, 4, [0]),
])  # fmt: skip
def test_clips_do_not_overlap(tmp_path, frames, num_frames, stride, starts):
    video = video_bytes(frames, channels=1)
    save(tmp_path / "a.npy", video)
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=num_frames, stride=stride, size=None, channels=1)
    assert [start for _, start in data.clips] == starts
    for index, start in enumerate(starts):
        expected = video[start : start + (num_frames - 1) * stride + 1 : stride]
        assert torch.equal(decoded(data[index]), torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_splits_and_folders_below(tmp_path):
    for place in ("train/sky/a", "train/sky/b", "test/c"):
        write_frames(tmp_path / place, video_bytes(4))
    save(tmp_path / "train" / "more" / "d.npy", video_bytes(4))
    save(tmp_path / "train" / ".hidden.npy", video_bytes(1))
    for split, names in (("train", ["more/d.npy", "sky/a", "sky/b"]), ("test", ["c"])):
        data = load_dataset(NAME, split, root=tmp_path, num_frames=4)
        assert [path for path, _ in data.clips] == [str(tmp_path / split / name) for name in names]
    assert len(load_dataset(NAME, "all", root=tmp_path, num_frames=4)) == 4
    two = load_dataset(NAME, "all", root=tmp_path, num_frames=1, num_videos=2)
    assert len(two) == 2 and [path.rsplit("/", 1)[1] for path, _ in two.clips] == ["c", "a"]


@pytest.mark.parametrize(
    ("axes", "given"), [("FHW", None), ("FHWC", None), ("FCHW", None), ("NFHWC", None), ("NFCHW", None),
                        ("NFHW", "NFHW"), ("FNHW", "FNHW"), ("CFHW", "CFHW"), ("HWF", "HWF")],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_any_axes(tmp_path, axes, given, suffix):
    number, channels = 2 if "N" in axes else 1, 3 if "C" in axes else 1
    videos = np.stack([video_bytes(5, 6, 7, channels, seed) for seed in range(number)])  # NFHWC
    stored = np.einsum(f"{'NFHWC'}->{axes + ''.join(a for a in 'NFHWC' if a not in axes)}", videos)
    stored = stored.reshape(stored.shape[: len(axes)])
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", stored)
    else:
        np.savez_compressed(tmp_path / "a.npz", stored)
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=5, size=None, channels=channels, axes=given)
    assert len(data) == number
    read = torch.stack([decoded(data[index]) for index in range(number)])
    assert torch.equal(read, torch.from_numpy(videos).permute(0, 1, 4, 2, 3))


def test_floats_become_the_nearest_bytes(tmp_path):
    video = video_bytes(4)
    for number, dtype in enumerate((np.float32, np.float64, ">f4")):
        np.save(tmp_path / f"{number}.npy", (video / 255).astype(dtype))
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=4, size=None)
    for index in range(3):
        assert torch.equal(decoded(data[index]), torch.from_numpy(video).permute(0, 3, 1, 2))


def test_sizes_and_channels(tmp_path):
    # The left and right, which a centre crop drops, are white; the filter looks 4 pixels beyond the cut.
    video = np.full((2, 16, 32, 3), 255, np.uint8)
    video[:, :, 4:28] = (200, 100, 50)
    save(tmp_path / "a.npy", video)
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=2, size=8)
    assert data.frame_shape == (3, 8, 8)
    assert (decoded(data[0]) == torch.tensor([200, 100, 50])[:, None, None]).all()
    grey = load_dataset(NAME, "all", root=tmp_path, num_frames=2, size=8, channels=1)
    assert grey.frame_shape == (1, 8, 8) and grey[0]["video"].shape == (2, 1, 8, 8)
    assert (decoded(grey[0]) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    # A chequerboard of single pixels is grey from afar: shrinking looks at all pixels.
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "boards" / "b.npy", np.stack([board, board]))
    boards = load_dataset(NAME, "boards", root=tmp_path, num_frames=2, size=8)
    assert boards[0]["video"].shape == (2, 3, 8, 8) and boards[0]["video"].abs().max() < 0.1


def test_gif(tmp_path):
    shades = levels(30)
    pictures = [Image.new("L", (8, 8), shade) for shade in shades]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=10, size=None, channels=1)
    assert len(data) == 3
    assert [int(frame.max()) for k in range(3) for frame in decoded(data[k])] == shades


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_encoded_videos_frame_by_frame(tmp_path, suffix):
    av = pytest.importorskip("av")
    write_encoded(tmp_path / f"a{suffix}")
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=7, size=None)
    assert len(data) == 5 and data.frame_shape == (3, 32, 32)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    shades = torch.stack(frames).float().mean((1, 2, 3))
    assert len(frames) == 40 and (shades - torch.tensor(levels(40))).abs().max() < 2.5  # levels are 5.4 apart
    for index in (4, 3, 1, 2, 0):
        expected = torch.stack(frames[7 * index : 7 * index + 7]).permute(0, 3, 1, 2)
        assert torch.equal(decoded(data[index]), expected)


def test_frames_are_in_order_where_avi_does_not_store_when_they_are_shown(tmp_path):
    av = pytest.importorskip("av")
    if "libx264" not in av.codecs_available:
        pytest.skip("FFmpeg was built without libx264")
    write_encoded(tmp_path / "a.avi", codec="libx264")
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=20, size=8, channels=1)
    shades = torch.cat([decoded(data[k]) for k in range(2)]).float().mean((1, 2, 3))
    assert (shades - torch.tensor(levels(40))).abs().max() < 2.5


def test_encoded_videos_need_pyav(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'a\.mp4 needs the package "av": pip install "gendiff\[video\]"'):
        load_dataset(NAME, "all", root=tmp_path)


def test_the_number_of_workers_changes_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", np.stack([video_bytes(8, seed=seed) for seed in range(3)]))
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=4, size=None)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
    videos = torch.cat([batch["video"] for batch in loader])
    assert torch.equal(videos, torch.stack([data[index]["video"] for index in range(6)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "../a"}, r"split must be the name of a folder in root, or all; got '\.\./a'"),
        ({"num_frames": 0}, "num_frames must be an integer of at least 1, got 0"),
        ({"stride": 1.5}, "stride must be an integer of at least 1, got 1.5"),
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"channels": 4}, "channels must be one of 1, 3, got 4"),
        ({"num_videos": 0}, "num_videos must be an integer of at least 1, got 0"),
        ({"num_videos": 4}, r"num_videos is 4, but .* holds 3 clips"),
        ({"axes": "FH"}, "axes must name F, H, W once, .* got 'FH'"),
        ({"axes": "FFHW"}, "axes must name F, H, W once, .* got 'FFHW'"),
        ({"axes": "FHW"}, r"axes='FHW' names 3 axes, but .*a\.npy is \(12, 8, 8, 3\)"),
        ({"axes": "NFHW"}, None),
        ({"axes": "CFHW"}, r"is \(12, 8, 8, 3\), with 12 channels by CFHW; 1 or 3 can be"),
        ({"num_frames": 16}, r"a\.npy has 12 frames; num_frames=16 at stride=1 needs 16"),
        ({"num_frames": 5, "stride": 3}, r"a\.npy has 12 frames; num_frames=5 at stride=3 needs 13"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    save(tmp_path / "a.npy", video_bytes(12))
    options = {"split": "all", "root": tmp_path, "num_frames": 4, **options}
    if message is None:  # any order of letters is a valid wish: 12 videos of 8 frames of 8x3 pixels
        assert len(load_dataset(NAME, **options)) == 24
        return
    with pytest.raises(ValueError, match=message):
        load_dataset(NAME, **options)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train does not exist\. .* is the split 'all'"):
        load_dataset(NAME, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no video: folders of frames .*\.npy, .*\.mov"):
        load_dataset(NAME, "all", root=tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(FileNotFoundError, match="The frames of a video go into a folder of their own"):
        load_dataset(NAME, "all", root=tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(InvalidInputError, match=r"a holds no frames .* and no other video"):
        load_dataset(NAME, "all", root=tmp_path)
    write_frames(tmp_path / "b", video_bytes(4))
    save(tmp_path / "b" / "c.npy", video_bytes(4))
    (tmp_path / "a").rmdir()
    with pytest.raises(InvalidInputError, match=r"b holds frames and .*c\.npy; give each video a place of its own"):
        load_dataset(NAME, "all", root=tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 50, 8, 8), np.uint8), r"is \(20, 50, 8, 8\), which is none of FHWC, FCHW; .* axes='FNHW'"),
        (np.zeros((20, 3, 8, 3), np.uint8), r"which could be FHWC or FCHW; say what its axes are by axes"),
        (np.zeros((2, 20, 3, 8, 1), np.uint8), "which could be NFHWC or NFCHW"),
        (np.zeros((20, 8), np.uint8), r"is \(20, 8\), which is none of FHW"),
        (np.zeros((20, 8, 8), np.int64), "holds int64; videos must be uint8, or floats in"),
        (np.zeros((20, 0, 8), np.uint8), r"is empty: \(20, 0, 8\)"),
    ],
)
def test_arrays_that_are_no_videos(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InvalidInputError, match=message):
        load_dataset(NAME, "all", root=tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"a\.npy: image 5 holds NaN or infinite values"),
        (np.inf, r"a\.npy: image 5 holds NaN or infinite values"),
        (1e300, r"a\.npy: image 5 holds NaN or infinite values"),
        (-1, r"a\.npy: image 5 has values from -1 to 0; .* become such by \(x \+ 1\) / 2"),
        (255, r"a\.npy: image 5 has values from 0 to 255; .* Give bytes as uint8"),
    ],
)
def test_floats_out_of_range(tmp_path, value, message):
    video = np.zeros((8, 4, 4))
    video[5, 1, 1] = value
    np.save(tmp_path / "a.npy", video)
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=4)
    assert data[0]["video"].eq(-1).all()
    with pytest.raises(InvalidInputError, match=message):
        data[1]


def test_damaged_files(tmp_path):
    def load(**options):
        return load_dataset(NAME, "all", root=tmp_path, **{"num_frames": 2, **options})

    path = tmp_path / "a.npy"
    np.save(path, video_bytes(12))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match=r"a\.npy is cut off: 100 bytes are missing at its end"):
        load()
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"a\.npy cannot be read as \.npy"):
        load()
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(UnsafeFileError, match=r"a\.npy holds pickled objects"):
        load()
    path.unlink()
    np.savez(tmp_path / "a.npz", other=video_bytes(12))
    with pytest.raises(InvalidInputError, match=r"a\.npz holds other, but no arr_0"):
        load()
    (tmp_path / "a.npz").unlink()
    (tmp_path / "a.gif").write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"a\.gif cannot be read as \.gif"):
        load()
    (tmp_path / "a.gif").unlink()
    write_frames(tmp_path / "b", video_bytes(3))
    (tmp_path / "b" / "1.png").write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"1\.png cannot be read as an image"):
        load()[0]
    Image.new("RGB", (8, 9)).save(tmp_path / "b" / "1.png")
    with pytest.raises(InvalidInputError, match=r"1\.png is 8x9 px, .*0\.png is 8x8 px; frames must have one size"):
        load()[0]
    Image.new("I;16", (8, 8)).save(tmp_path / "b" / "1.png")
    with pytest.raises(InvalidInputError, match=r"1\.png cannot be read as an image: it has values of more than 8"):
        load()[0]


def test_damaged_encoded_videos(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.mkv"
    write_encoded(path)
    data = load_dataset(NAME, "all", root=tmp_path, num_frames=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # after it was opened
    with pytest.raises(InvalidInputError, match=r"a\.mkv is damaged: frame \d+ of 40 cannot be decoded"):
        data[1]
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"a\.mkv cannot be read as \.mkv"):
        load_dataset(NAME, "all", root=tmp_path)


def test_videos_of_several_sizes(tmp_path):
    save(tmp_path / "a.npy", video_bytes(4, 8, 8))
    save(tmp_path / "b.npy", video_bytes(4, 8, 9))
    with pytest.raises(InvalidInputError, match=r"b\.npy has frames of 9x8 px, .*a\.npy of 8x8 px; give size"):
        load_dataset(NAME, "all", root=tmp_path, num_frames=4, size=None)
    assert load_dataset(NAME, "all", root=tmp_path, num_frames=4, size=8)[1]["video"].shape == (4, 3, 8, 8)
