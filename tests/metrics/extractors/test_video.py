"""Features of clips."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings

import pytest
import torch
from torch import nn

from gendiff.errors import InvalidInputError, UnsafeFileError, WeightsCorruptError, WeightsNotFoundError
from gendiff.metrics.extractors import get_extractor
from gendiff.metrics.weights_table import WEIGHTS


@pytest.fixture
def clips(photos):
    """Two clips of ten frames that pan over pictures of 40 x 36, uint8 (2, 10, 3, 40, 36)."""
    return torch.stack([photos[:2].roll(frame, dims=-1) for frame in range(10)], dim=1)


class Script(nn.Module):
    """Called as StyleGAN-V's script is; 400 colours of 16 places and times."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert not rescale and not resize and return_features
        pooled = nn.functional.adaptive_avg_pool3d(x, (3, 7, 7)).flatten(1)
        return pooled[:, :400]


@pytest.fixture
def script(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.* is deprecated")
        torch.jit.script(Script()).save(str(tmp_path / "i3d.pt"))
    return tmp_path / "i3d.pt"


def pin(path):
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def test_lite0_video_is_the_mean_and_the_change_of_lite0_112(clips):
    extractor = get_extractor("lite0-video")
    frames = torch.stack([get_extractor("lite0-112")(clip) for clip in clips])
    expected = torch.cat([frames.mean(1), (frames[:, 1:] - frames[:, :-1]).abs().mean(1)], dim=1)
    rows = extractor(clips)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-4)
    assert (extractor.label, extractor.dim, rows.shape) == ("FD[lite0-video]", 224, (2, 224))
    torch.testing.assert_close(extractor(clips[:1]), rows[:1], rtol=1e-5, atol=1e-4)
    frozen = extractor(clips[:, :1].repeat(1, 10, 1, 1, 1))
    assert frozen[:, 112:].abs().max() < 1e-4 < 0.01 < rows[:, 112:].mean()
    shuffled = extractor(clips[:, [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]])
    assert (shuffled[:, 112:].mean(1) > 1.1 * rows[:, 112:].mean(1)).all()
    torch.testing.assert_close(shuffled[:, :112], rows[:, :112], rtol=1e-4, atol=1e-4)


def test_clips_that_cannot_be_read(clips):
    extractor = get_extractor("lite0-video")
    with pytest.raises(InvalidInputError, match=r"must be \(B, F, 3, H, W\), none of them 0, got \(10, 3, 40, 36\)"):
        extractor(clips[0])
    with pytest.raises(InvalidInputError, match="must be uint8"):
        extractor(clips.float())
    with pytest.raises(InvalidInputError, match="at least 2 frames long for lite0-video, got 1"):
        extractor(clips[:, :1])


def test_the_two_i3d_resize_differently(clips, script):
    pin(script)
    gpt, stylegan = (get_extractor(name, weights=script) for name in ("i3d-videogpt", "i3d-styleganv"))
    flat = clips.flatten(0, 1).float()
    squeezed = nn.functional.interpolate(flat, size=(224, 224), mode="bilinear") / 127.5 - 1
    # 40 x 36 with the short side at 224: 249 (rounded up) x 224, of which rows 12 to 236 remain.
    cropped = nn.functional.interpolate(flat, size=(249, 224), mode="bilinear")[..., 12:236, :] / 127.5 - 1
    for extractor, frames in ((gpt, squeezed), (stylegan, cropped)):
        expected = frames.unflatten(0, (2, 10)).transpose(1, 2)
        torch.testing.assert_close(extractor.prepare(clips), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(extractor(clips), Script()(expected, False, False, True), rtol=0, atol=1e-4)
    wide = stylegan.prepare(clips.transpose(-1, -2))
    torch.testing.assert_close(wide, stylegan.prepare(clips).transpose(-1, -2), rtol=0, atol=1e-5)
    for name, extractor in (("i3d-videogpt", gpt), ("i3d-styleganv", stylegan)):
        assert extractor.label == f"FD[{name}@{extractor.weights_sha256[:8]}]"
        assert extractor.dim == 400
    with pytest.raises(InvalidInputError, match=r"at least 10 frames long for i3d-videogpt@.*, got 9"):
        gpt(clips[:, :9])


def test_only_the_published_i3d_gives_fvd(script, monkeypatch):
    entry = WEIGHTS["i3d-styleganv"]
    file = dataclasses.replace(entry.files[0], sha256=hashlib.sha256(script.read_bytes()).hexdigest())
    monkeypatch.setitem(WEIGHTS, "i3d-styleganv", dataclasses.replace(entry, files=(file,)))
    extractor = get_extractor("i3d-styleganv", weights=script)
    assert (extractor.id, extractor.label) == ("i3d-styleganv", "FVD(styleganv)")


def test_a_script_that_nobody_vouches_for_is_not_loaded(script, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
        for name in ("i3d-videogpt", "i3d-styleganv"):
            with pytest.raises(UnsafeFileError, match=r"sha256sum i3d.pt > i3d.pt.sha256"):
                get_extractor(name, weights=script)
        pin(script)
        script.write_bytes(script.read_bytes() + b"\0")
        with pytest.raises(WeightsCorruptError, match="sha256"):
            get_extractor("i3d-videogpt", weights=script)
        with pytest.raises(WeightsNotFoundError, match=r"i3d_torchscript\.pt"):
            get_extractor("i3d-styleganv")
    state = tmp_path / "i3d_pretrained_400.pt"
    torch.save({"weight": torch.zeros(1)}, state)
    pin(state)
    with pytest.raises(UnsafeFileError, match="is not TorchScript"):
        get_extractor("i3d-videogpt", weights=state)
