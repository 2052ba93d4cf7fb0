"""Scores against network calls, from end to end with an untrained pipeline and pixels for features."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest


@pytest.fixture
def run(bench, ddim_folder, tmp_path):
    """`run(steps, ...)`: the result of the script, on grey images of noise for reference."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "real.npy", rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    fixed = ["--model", str(ddim_folder), "--reference", str(tmp_path / "real.npy"), "--num", "24"]
    fixed += ["--extractors", "pixel", "--allow-small-n", "--batch-size", "8", "--output", str(tmp_path / "f.json")]

    def call(steps, *options):
        return json.loads(bench("fid").main([*fixed, "--steps", steps, *options]).read_text())

    return call


def values(result, metric):
    return {case["steps"]: case["quality"]["value"] for case in result["cases"] if case["quality"]["metric"] == metric}


def test_every_number_of_steps_is_scored_with_its_conditions(bench, run, tmp_path, capsys):
    result = run("1,3")
    bench("result_schema").validate(result)
    assert len(result["cases"]) == 2 * 7 and {case["nfe"] for case in result["cases"]} == {1.0, 3.0}
    quality = result["cases"][0]["quality"]
    assert quality["metric"] == "fd" and quality["n"] == 24 and quality["floor"]["n"] == 20
    samples = [report["conditions"]["samples"] for report in result["reports"]]
    assert samples[0]["kind"] == "pipeline" and samples[0]["seeds"] == [0, 23]
    assert samples[0]["sha256"] != samples[1]["sha256"]
    text = (tmp_path / "f.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert f"| 3 | 3 | {values(result, 'fd')[3]:.4g} |" in text and "Warning: N=24" in text
    for name in ("f.png", "f.svg", "f-images.png", "f-images.svg"):
        assert (tmp_path / name).stat().st_size > 5_000, name
    with (tmp_path / "f-images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 15 and int(rows[14]["images"]) == 24


def test_it_goes_on_where_it_stopped(run, capsys):
    first = run("1", "--metrics", "fd")
    both = run("1,2", "--metrics", "fd")
    assert "1 steps: known" in capsys.readouterr().err
    assert both["cases"][0] == first["cases"][0] and set(values(both, "fd")) == {1, 2}
    with pytest.raises(SystemExit):
        run("1", "--metrics", "kid")
    assert "holds scores of other settings" in capsys.readouterr().err
    assert set(values(run("1", "--metrics", "kid", "--force"), "kid")) == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--extractors", "pixel,pixel"], "must be different names"),
        (["--extractors", "pixels"], "pixels"),
        (["--metrics", "fdd"], "metrics has 'fdd'"),
        (["--reference", "nowhere"], "nowhere"),
        (["--labels", "random"], "takes no class_labels"),
    ],
)
def test_bad_arguments_are_named(run, capsys, change, message):
    with pytest.raises(SystemExit) as stopped:
        run("1", *change)
    assert stopped.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
