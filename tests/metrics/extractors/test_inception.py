"""Inception against the programs whose numbers it must repeat, with one random set of weights."""

from __future__ import annotations

import dataclasses
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gendiff.errors import InvalidInputError, UnsafeFileError, WeightsCorruptError, WeightsNotFoundError
from gendiff.metrics.extractors import get_extractor
from gendiff.metrics.weights import sha256_of
from gendiff.metrics.weights_table import WEIGHTS


@pytest.fixture(scope="module")
def sha8(inception_file):
    return sha256_of(inception_file)[:8]


@pytest.fixture(scope="module")
def fidelity(inception_file):
    """torch-fidelity's own extractor."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    return FeatureExtractorInceptionV3("own", names, feature_extractor_weights_path=str(inception_file))


@pytest.fixture(scope="module")
def clean_fid(inception_file):
    """clean-fid's own network, `clean_fid(normalize_input)`, (B, 3, 299, 299) -> (B, 2048)."""
    import cleanfid.inception_pytorch as own

    def make(normalize_input):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), torch.random.fork_rng():
            patch.setattr(
                own, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_file, weights_only=True)
            )
            warnings.simplefilter("ignore")
            network = own.InceptionV3([3], resize_input=False, normalize_input=normalize_input).eval()
        return lambda x: network(x)[0].flatten(1)

    return make


@pytest.fixture(scope="module")
def few(photos):
    """As many as a slow network can read in a test; one of them grey."""
    return photos[-2:]


@pytest.fixture(scope="module")
def ours(inception_file, few):
    """Extractor and rows of each mode."""
    extractors = {
        mode: get_extractor(f"inception-{mode}", weights=inception_file) for mode in ("clean", "legacy-tf", "legacy-pt")
    }
    return {mode: (extractor, extractor(few)) for mode, extractor in extractors.items()}


def close(rows, expected):
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert expected.std(0).max() > 1e-2  # something that differs from picture to picture is compared


def clean_fid_resized(photos, mode):
    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():
        resize = build_resizer(mode)
        arrays = [resize(photo.permute(1, 2, 0).numpy()) for photo in photos]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_legacy_tf_is_torch_fidelity(ours, fidelity, few, sha8):
    extractor, rows = ours["legacy-tf"]
    with torch.inference_mode():
        features, logits = fidelity(few)
    close(rows, features)
    close(extractor.logits(few), logits)
    assert rows.shape == (2, 2048) and rows.dtype == torch.float32
    assert extractor.id == f"inception-legacy-tf@{sha8}" and extractor.label == f"FD[inception-legacy-tf@{sha8}]"


def test_clean_is_clean_fid(ours, clean_fid, few):
    extractor, rows = ours["clean"]
    with torch.inference_mode():
        expected = clean_fid(normalize_input=False)((clean_fid_resized(few, "clean") - 128) / 128)
    close(rows, expected)
    torch.testing.assert_close(extractor(few[1:]), rows[1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidInputError, match="must be uint8"):
        extractor(few.float())


def test_legacy_pt_is_clean_fids_legacy_pytorch(ours, clean_fid, few):
    with torch.inference_mode():
        expected = clean_fid(normalize_input=True)(clean_fid_resized(few, "legacy_pytorch") / 255)
    close(ours["legacy-pt"][1], expected)


def test_the_three_resizes_differ(ours):
    rows = [rows for _, rows in ours.values()]
    assert all((rows[i] - rows[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_sfid_reads_the_first_channels_of_mixed_6(inception_file, fidelity, photos):
    seen = []
    hook = fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda module, arguments, output: seen.append(output))
    with torch.inference_mode():
        fidelity(photos[:2])
    hook.remove()
    extractor = get_extractor("sfid", weights=inception_file)
    rows = extractor(photos[:2])
    assert rows.shape == (2, 2023) and extractor.dim == 2023 and extractor.id.startswith("sfid-legacy-tf@")
    close(rows, seen[0][:, :7].flatten(1))


@pytest.fixture
def official(inception_file, tmp_path, monkeypatch):
    """Make the table take the random weights for the published ones, and put them where they are looked for."""
    entry = WEIGHTS["inception"]
    files = (dataclasses.replace(entry.files[0], sha256=sha256_of(inception_file)), *entry.files[1:])
    monkeypatch.setitem(WEIGHTS, "inception", dataclasses.replace(entry, files=files))
    monkeypatch.setenv("GENDIFF_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / files[0].names[1]).symlink_to(inception_file)


def test_only_the_published_weights_give_fid(official):
    labels = {name: get_extractor(name).label for name in ("inception", "sfid-legacy-tf")}
    assert labels == {"inception": "FID(clean)", "sfid-legacy-tf": "sFID(legacy-tf)"}


def test_weights_that_are_not_there_or_not_right(tmp_path, monkeypatch, inception_file):
    with pytest.raises(WeightsNotFoundError, match="Inception weights not found"):
        get_extractor("inception")
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "other.pth")
    with pytest.raises(WeightsCorruptError, match=r"other.pth is not a state dict of Inception-v3 .*Missing key"):
        get_extractor("inception", weights=tmp_path / "other.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(inception_file.read_bytes()[:1_000_000])
    with pytest.raises(WeightsCorruptError, match=r"cut.pth cannot be read as a state dict"):
        get_extractor("inception", weights=cut)
    promised = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    cut.rename(promised)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded before its sha256 was right"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded before its sha256 was right"))
    with pytest.raises(WeightsCorruptError, match=r"sha256 [0-9a-f]{64}, expected 6726825d.*size 1000000 bytes"):
        get_extractor("inception", weights=promised)


class Script(nn.Module):
    """Called as the published script is."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, 2048, 4))

    def forward(self, x, return_features: bool = False):
        return self.layers(x) if return_features else x


@pytest.fixture
def script(tmp_path):
    torch.manual_seed(0)
    module = Script().eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.* is deprecated")
        torch.jit.script(module).save(str(tmp_path / "inception-2015-12-05.pt"))
    return module, tmp_path / "inception-2015-12-05.pt"


def test_a_script_is_loaded_only_if_it_is_the_published_one(script, photos, monkeypatch):
    module, path = script
    with pytest.raises(WeightsCorruptError, match="expected f58cb9b6"):
        get_extractor("inception", weights=path)
    renamed = path.rename(path.with_name("mine.pt"))
    with pytest.raises(UnsafeFileError, match="TorchScript archive, whose code would run"):
        get_extractor("inception", weights=renamed)
    entry = WEIGHTS["inception"]
    files = (entry.files[0], dataclasses.replace(entry.files[1], sha256=sha256_of(renamed)))
    monkeypatch.setitem(WEIGHTS, "inception", dataclasses.replace(entry, files=files))
    clean, legacy = (get_extractor(f"inception-{mode}", weights=renamed) for mode in ("clean", "legacy-tf"))
    assert (clean.label, legacy.label) == ("FID(clean)", "FID(legacy-tf)")
    with torch.inference_mode():
        close(clean(photos), module.layers((clean_fid_resized(photos, "clean") - 128) / 128).flatten(1))
        close(legacy(photos), module.layers(photos.float()).flatten(1))
    with pytest.raises(InvalidInputError, match="gives no logits"):
        clean.logits(photos)
    for name in ("inception-legacy-pt", "sfid-clean"):
        with pytest.raises(InvalidInputError, match="needs the state dict"):
            get_extractor(name, weights=renamed)


def test_unpickling_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UnsafeFileError, match="holds more than tensors"):
        get_extractor("inception", weights=tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(WeightsCorruptError, match="holds list, not a state dict"):
        get_extractor("inception", weights=tmp_path / "list.pth")


def test_torch_fidelity_never_sees_the_file(inception_file, monkeypatch):
    loads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: loads.append((file, options)) or real(file, **options))
    state = torch.random.get_rng_state()
    get_extractor("inception-legacy-tf", weights=inception_file)
    unsafe = [file for file, options in loads if not options.get("weights_only")]
    assert len(loads) == 2 and all(isinstance(file, io.BytesIO) and file.getbuffer().nbytes < 2000 for file in unsafe)
    assert torch.equal(torch.random.get_rng_state(), state)
