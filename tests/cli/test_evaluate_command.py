"""`gendiff evaluate`: numbers of the library with their conditions; one line and no files for what does not fit."""

from __future__ import annotations

import csv
import json
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from evaluate_cases import HELPERS, TINY, assert_refused, folder_of, pixels, tree
from PIL import Image

from gendiff.data.sources import open_source
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet import frechet_distance
from gendiff.metrics.neighbours import prdc
from gendiff.metrics.reference_stats import load_reference

pytestmark = pytest.mark.usefixtures("no_weights")


def features(path, num=None) -> np.ndarray:
    sys.path.insert(0, str(HELPERS))
    from tiny_extractor import TinyExtractor

    sys.path.remove(str(HELPERS))
    return extract_features(open_source(str(path)), TinyExtractor().eval(), num=num, progress=False)


def test_fd_prints_writes_and_says_what_it_depends_on(evaluate, samples, reference, tmp_path):
    out = tmp_path / "out" / "o.json"
    result = evaluate("fd", "--samples", samples, "--reference", reference, "--extractor", TINY, "--json", out)
    assert result.code == 0, result.err
    expected = frechet_distance(features(samples), features(reference), warn=False).value
    record = json.loads(out.read_text())
    assert record["scores"]["fd"]["value"] == pytest.approx(expected, rel=1e-9)
    conditions = record["conditions"]
    assert (conditions["n_gen"], conditions["n_real"]) == (50, 70)
    assert conditions["extractor"]["id"] == "tiny-6" and conditions["extractor"]["weights_sha256"] == "0" * 64
    assert conditions["samples"]["format"] == "PNG" and len(conditions["samples"]["sha256"]) == 64
    assert record["command"].startswith(f"gendiff evaluate fd --samples {samples} ")
    assert record["versions"]["torch"] and record["created"]
    assert record["scores"]["fd"]["floor"]["n"] <= 50
    for text in ("metric", "floor", "FD[tiny-6]", f"{expected:.4g}", "50 / 70", "warning: N=50 < 10·d=60; bias"):
        assert text in result.out
    assert "50/50" in result.err and "gendiff:" not in result.err  # a bar, and no warning a second time


def test_num_seed_and_batch_size(evaluate, samples, reference, tmp_path):
    def score(*options):
        result = evaluate(
            "fd", "--samples", samples, "--reference", reference, "--extractor", TINY, "--json", tmp_path / "o.json",
            *options,
        )  # fmt: skip
        assert result.code == 0, result.err
        return json.loads((tmp_path / "o.json").read_text())

    base, fewer = score(), score("--num", 30, "--num-reference", 40)
    expected = frechet_distance(features(samples, 30), features(reference, 40), warn=False).value
    assert fewer["scores"]["fd"]["value"] == pytest.approx(expected, rel=1e-9)
    batched = score("--batch-size", 7, "--workers", 2, "--device", "cpu")
    assert batched["scores"]["fd"]["value"] == pytest.approx(base["scores"]["fd"]["value"], rel=1e-4)
    other = score("--seed", 5)
    assert other["scores"]["fd"]["value"] == base["scores"]["fd"]["value"]
    assert other["scores"]["fd"]["floor"]["value"] != base["scores"]["fd"]["floor"]["value"]


def test_plots_of_fd_hold_their_numbers(evaluate, tmp_path):
    for name, seed in (("gen", 1), ("real", 2)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels(160, seed))
    sides = ("--samples", tmp_path / "gen.npz", "--reference", tmp_path / "real.npz")
    result = evaluate("fd", *sides, "--extractor", TINY, "--plot", tmp_path / "plots", "--json", tmp_path / "o.json")
    assert result.code == 0, result.err
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"images.png", *(f"fd-against-n.{kind}" for kind in ("png", "svg", "csv"))}
    with (tmp_path / "plots" / "fd-against-n.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = json.loads((tmp_path / "o.json").read_text())["scores"]
    assert [int(row["n"]) for row in rows] == scores["fd_infinity"]["details"]["sizes"]
    assert float(rows[-1]["fd"]) == pytest.approx(scores["fd"]["value"])


def test_few_images_are_plotted_without_a_line(evaluate, samples, reference, tmp_path):
    sides = ("--samples", samples, "--reference", reference, "--extractor", TINY)
    assert evaluate("fd", *sides, "--plot", tmp_path / "plots").code == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["images.png"]


def test_all_writes_json_and_markdown(evaluate, samples, reference, tmp_path):
    sides = ("--samples", samples, "--reference", reference, "--extractor", TINY, "--k", 2)
    result = evaluate("all", *sides, "--json", tmp_path / "o.json", "--md", tmp_path / "o.md")
    assert result.code == 0, result.err
    scores = json.loads((tmp_path / "o.json").read_text())["scores"]
    assert list(scores) == ["fd", "fd_infinity", "kid", "precision", "recall", "density", "coverage"]
    expected = prdc(features(reference), features(samples), k=2)
    assert [scores[name]["value"] for name in ("precision", "coverage")] == [expected.precision, expected.coverage]
    text = (tmp_path / "o.md").read_text()
    for label in ("FD[tiny-6]", "FD∞[tiny-6]", "KID[tiny-6]", "recall[tiny-6], k=2"):
        assert label in result.out and label in text


@pytest.mark.parametrize(("command", "scores"), [("kid", {"kid"}), ("is", {"is"})])
def test_commands_of_one_metric(evaluate, samples, reference, tmp_path, command, scores):
    sides = ("--samples", samples, "--reference", reference, "--extractor", TINY)
    result = evaluate(command, *sides, "--json", tmp_path / "o.json")
    assert result.code == 0, result.err
    assert set(json.loads((tmp_path / "o.json").read_text())["scores"]) == scores


def test_statistics_stand_for_the_images(evaluate, samples, reference, tmp_path):
    stats = tmp_path / "stats.npz"
    result = evaluate("stats", "--data", reference, "--extractor", TINY, "--out", stats)
    assert result.code == 0 and "FD[tiny-6]: statistics of 70 images in" in result.out
    loaded = load_reference(stats)
    assert loaded.extractor_id == "tiny-6" and loaded.stats.n == 70
    assert loaded.source_sha256 == open_source(str(reference)).describe()["sha256"]
    values = []
    for side in (reference, stats):
        sides = ("--samples", samples, "--reference", side, "--extractor", TINY)
        assert evaluate("fd", *sides, "--json", tmp_path / "o.json", "--plot", tmp_path / "plots").code == 0
        values.append(json.loads((tmp_path / "o.json").read_text())["scores"]["fd"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_what_is_only_suspicious_is_a_warning(evaluate, reference, tmp_path):
    images = pixels(50, 1)
    jpeg, png = folder_of(tmp_path / "jpeg", images, ".jpg"), folder_of(tmp_path / "png", images[:20])
    result = evaluate("fd", "--samples", jpeg, "--reference", png, "--extractor", TINY)
    assert result.code == 0 and "warning: samples are JPEG, the reference is PNG" in result.out
    arguments = ("--samples", png, "--reference", reference, "--extractor", TINY, "--train", png)
    found = evaluate("kid", *arguments, "--plot", tmp_path / "plots")
    assert "warning: memorised or leaked: 20 of 20 samples" in found.out
    # Beside each sample its nearest training image: here itself.
    rows = (tmp_path / "plots" / "nearest-in-training.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1:] for row in rows] == [[str(index), "0.0"] for index in range(16)]


def test_mixed_sizes_can_be_resized(evaluate, samples, reference):
    Image.new("RGB", (9, 9)).save(samples / "small.png")
    sides = ("--samples", samples, "--reference", reference, "--extractor", TINY)
    assert evaluate("fd", *sides).code == 2
    assert evaluate("fd", *sides, "--resize", 8).code == 0


def bad_sides(tmp_path: Path) -> dict[str, Path]:
    """What cannot be scored, by what is wrong with it."""
    sides = {name: tmp_path / name for name in ("empty", "one.npy", "floats.npy", "channels.npy", "objects.npy")}
    sides["empty"].mkdir()
    np.save(sides["one.npy"], pixels(1, 0))
    np.save(sides["floats.npy"], pixels(4, 0).astype(np.float32))
    np.save(sides["channels.npy"], pixels(4, 0)[..., :2])
    np.save(sides["objects.npy"], np.array([{}]), allow_pickle=True)
    sides["mixed"] = folder_of(tmp_path / "mixed", pixels(3, 0))
    Image.new("RGB", (9, 7)).save(sides["mixed"] / "x.png")
    sides["broken"] = folder_of(tmp_path / "broken", pixels(3, 0))
    (sides["broken"] / "0001.png").write_bytes(b"no picture")
    sides["stats.pkl"] = tmp_path / "stats.pkl"
    sides["stats.pkl"].write_bytes(pickle.dumps({"mu": 0}))
    sides["images.pt"] = tmp_path / "images.pt"
    torch.save(torch.zeros(1), sides["images.pt"])
    sides["nothing"] = tmp_path / "nothing"
    return sides


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "empty holds no image"),
        ("nothing", "nothing does not exist"),
        ("broken", "broken/0001.png is not a readable image"),
        ("mixed", "mixed sizes: "),
        ("one.npy", "must hold at least 2 images"),
        ("floats.npy", "float pixels must be in [0, 1]"),
        ("channels.npy", "has shape (4, 12, 12, 2)"),
        ("objects.npy", "holds pickled objects"),
        ("images.pt", "can run code when it is loaded"),
        ("stats.pkl", "can run code"),
    ],
)
def test_sets_that_cannot_be_scored(evaluate, reference, samples, tmp_path, name, message):
    side = bad_sides(tmp_path)[name]
    others = ("--extractor", TINY)
    if name == "floats.npy":  # found while images are read, after the bar has begun
        result = evaluate("kid", "--samples", side, "--reference", reference, *others, "--json", tmp_path / "o.json")
        assert result.code == 2 and message in result.err.splitlines()[-1] and not (tmp_path / "o.json").exists()
        return
    assert_refused(evaluate, tmp_path, ("fd", "--samples", side, "--reference", reference, *others), message)
    assert_refused(evaluate, tmp_path, ("kid", "--samples", samples, "--reference", side, *others), message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("fd", "--num", "51"), "num=51 images of the samples are asked for, but"),
        (("fd", "--num", "1"), "Invalid value for '--num'"),
        (("fd", "--extractor", "lite0-113"), "Did you mean 'lite0-112'?"),
        (("fd", "--extractor", "no.such:Thing"), "extractor 'no.such:Thing' cannot be imported"),
        (("fd", "--extractor", "pixel"), "N=50 images in d=784 dimensions"),
        (("fd", "--weights", "w.pth", "--extractor", "pixel"), "weights must be None for pixel"),
        (("fd", "--reference", "dataset:fashion"), "unknown dataset 'fashion'"),
        (("fd", "--reference", "dataset:fashion-mnist:nights"), "dataset:fashion-mnist:nights: "),
        (("prdc", "--k", "50"), "k=50 must be below the 50 images of the samples"),
        (("cmmd", "--extractor", TINY), "cmmd is defined on CLIP features"),
        (("is", "--extractor", "pixel"), "pixel"),
        (("fid", "--mode", "dirty"), "--mode must be one of clean, legacy-tf, legacy-pt, got 'dirty'"),
    ],
)
def test_options_that_do_not_fit(evaluate, samples, reference, tmp_path, command, message):
    arguments = ("--samples", samples, "--reference", reference, *command[1:])
    if command[0] in ("fd", "prdc") and "--extractor" not in command:
        arguments = (*arguments, "--extractor", TINY)
    assert_refused(evaluate, tmp_path, (command[0], *arguments), message)


def test_small_n_can_be_allowed(evaluate, samples, reference):
    sides = ("--samples", samples, "--reference", reference, "--extractor", "pixel")
    result = evaluate("fd", *sides, "--allow-small-n")
    assert result.code == 0 and "warning: error: N=50 < d=784" in result.out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("fid",), "Inception weights not found. Looked in: "),
        (("fid", "--weights", "here.pth"), "here.pth do not exist"),
        (("cmmd",), "CLIP ViT-L/14@336 weights not found"),
        (("fd", "--extractor", "dinov2-l14"), "DINOv2 ViT-L/14 weights not found"),
        (("paired", "--num", "3", "--metrics", "psnr,lpips"), "AlexNet (LPIPS) weights not found"),
    ],
)
def test_missing_weights_are_exit_code_3(evaluate, samples, reference, tmp_path, monkeypatch, command, message):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    arguments = (command[0], "--samples", samples, "--reference", reference, *command[1:])
    assert_refused(evaluate, tmp_path, arguments, message, code=3, plot=command[0] != "paired")


def test_wrong_weights_are_exit_code_2(evaluate, samples, reference, tmp_path):
    weights = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    weights.write_bytes(b"other")
    command = ("fid", "--samples", samples, "--reference", reference, "--weights", weights)
    assert_refused(evaluate, tmp_path, command, "expected 6726825d0af5f729")


def test_statistics_of_another_extractor(evaluate, samples, reference, tmp_path):
    stats = tmp_path / "stats.npz"
    assert evaluate("stats", "--data", reference, "--extractor", TINY, "--out", stats).code == 0
    other = ("--samples", samples, "--reference", stats, "--extractor", "pixel", "--allow-small-n")
    assert_refused(evaluate, tmp_path, ("fd", *other), "features of 6 dimensions, the samples of 784")
    assert_refused(evaluate, tmp_path, ("kid", *other[:-1]), "holds statistics, which only fd can be taken against")
    renamed = {**np.load(stats), "resize": "another way"}
    np.savez(stats, **renamed)
    same = ("fd", "--samples", samples, "--reference", stats, "--extractor", TINY)
    assert_refused(evaluate, tmp_path, same, "resize of the reference is 'another way'")


def test_features_that_are_not_finite(evaluate, samples, reference, tmp_path, monkeypatch):
    sys.path.insert(0, str(HELPERS))
    import tiny_extractor

    sys.path.remove(str(HELPERS))
    extract = tiny_extractor.TinyExtractor.extract

    def broken(self, images):
        found = extract(self, images)
        found[3 % len(found)] = float("nan")
        return found

    monkeypatch.setattr(tiny_extractor.TinyExtractor, "extract", broken)
    arguments = ("--samples", samples, "--reference", reference, "--extractor", TINY)
    result = evaluate("fd", *arguments, "--json", tmp_path / "o.json")
    assert result.code == 2 and "0003.png are NaN or infinite" in result.err.splitlines()[-1]
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("--json", ".", "--json must be a file"),
        ("--md", ".", "--md must be a file"),
        ("--plot", "file", "--plot must be a folder"),
        ("--json", "file/o.json", "is a file, not a folder"),
    ],
)
def test_outputs_are_tried_before_any_work(evaluate, tmp_path, option, path, message):
    (tmp_path / "file").write_text("in the way")
    result = evaluate("fd", "--samples", "/no/such", "--reference", "/no/such", option, tmp_path / path)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "in the way" and len(tree(tmp_path)) == 1


@pytest.mark.parametrize(
    ("out", "message"), [("stats.npy", "--out must end in .npz"), ("folder.npz", "--out must be a file")]
)
def test_statistics_need_a_file(evaluate, reference, tmp_path, out, message):
    (tmp_path / "folder.npz").mkdir()
    command = ("stats", "--data", reference, "--extractor", TINY, "--out", tmp_path / out)
    assert_refused(evaluate, tmp_path, command, message)


def test_only_the_main_process_tells_what_everyone_can_mend(evaluate, monkeypatch):
    command = ("fd", "--samples", "/no/such", "--reference", "/no/such")
    assert "/no/such does not exist" in evaluate(*command).err
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    result = evaluate(*command)
    assert (result.code, result.out, result.err) == (2, "", "")
    monkeypatch.setattr("gendiff.app.evaluation_run.open_source", lambda *_, **__: 1 / 0)
    assert "unexpected ZeroDivisionError" in evaluate(*command).err  # which the others may not have met
