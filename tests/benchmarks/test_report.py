"""Result files: written whole, checked field by field, shown and compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from gendiff.errors import InvalidInputError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DELETE = object()


def changed(result, path, value):
    result = copy.deepcopy(result)
    *way, last = path
    target = result
    for key in way:
        target = target[key]
    if value is DELETE:
        del target[last]
    else:
        target[last] = value
    return result


def test_a_result_comes_back_as_it_was_written(bench, result, tmp_path):
    report, made = bench("report"), result()
    report.write_result(tmp_path / "new" / "a.json", made)
    assert report.read_result(tmp_path / "new" / "a.json") == made
    assert report.read_result(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "other", r"schema: expected 'gendiff-bench/1', got 'other'"),
        (("created",), DELETE, "created is missing; expected a non-empty string"),
        (("git", "dirty"), "no", "git.dirty: expected true or false or null, got 'no'"),
        (("env", "threads"), 0, "env.threads: expected a whole number of at least 1, got 0"),
        (("env", "torch"), DELETE, "env.torch is missing"),
        (("env", "ram_gib"), "8", "env.ram_gib: expected a number above 0 or null, got '8'"),
        (("calibration", "copy_gbs"), DELETE, "calibration.copy_gbs is missing"),
        (("cases",), {}, "cases: expected a list"),
        (("cases", 0), 5, r"cases\[0\]: expected an object, got int"),
        (("cases", 0, "noisy"), DELETE, r"cases\[0\]\.noisy is missing; expected true or false"),
        (("cases", 0, "p50"), float("nan"), r"cases\[0\]\.p50: expected a number above 0, got nan"),
        (("cases", 0, "p50"), 2.0, r"cases\[0\]\.p50: expected 1, as timings_s has it, got 2\.0"),
        (("cases", 0, "images_per_s"), 3.0, r"cases\[0\]\.images_per_s: expected 2, as timings_s has it"),
        (("cases", 0, "repeats"), 20, r"cases\[0\]\.repeats: expected 21"),
        (("cases", 0, "ci95"), [2.0, 1.0], r"cases\[0\]\.ci95: expected two numbers in order or null"),
        (("cases", 0, "timings_s"), [], r"cases\[0\]\.timings_s: expected a non-empty list"),
        (("cases", 0, "output_sha256"), "abc", "64 hexadecimal digits"),
        (("cases", 0, "quality"), {"metric": "fd"}, r"cases\[0\]\.quality\.value is missing"),
        (("cases", 0, "peer"), {"name": "x"}, r"cases\[0\]\.peer\.version is missing"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_written(bench, result, tmp_path, path, value, message):
    with pytest.raises(InvalidInputError, match=message):
        bench("report").write_result(tmp_path / "a.json", changed(result(), path, value))
    assert not (tmp_path / "a.json").exists()


def test_results_of_older_versions_stay_valid(bench, capsys):
    files = [str(path) for path in sorted(RESULTS.glob("counterfactual-*.json"))]
    assert files and bench("report").main(["check", *files]) == 0
    assert f"{len(files)} of {len(files)} files are valid" in capsys.readouterr().out


def test_check_names_the_file_and_the_field(bench, result, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(changed(result(), ("cases", 0, "batch"), 0)))
    assert bench("report").main(["check", str(path)]) == 1
    assert f"{path}: cases[0].batch: expected a whole number of at least 1, got 0" in capsys.readouterr().err
    path.write_text("{")
    assert bench("report").main(["check", str(path)]) == 1
    assert "is not JSON" in capsys.readouterr().err


def compare(bench, tmp_path, old, new, *options):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, result in zip(paths, (old, new), strict=True):
        bench("report").write_result(path, result)
    return bench("report").main(["compare", *map(str, paths), *options])


def test_another_environment_is_refused_unless_forced(bench, result, tmp_path, capsys):
    threads = result()["env"]["threads"]
    old, new = result(), result(threads=threads + 1, load_after={"average": 9.0, "runnable": 4})
    assert compare(bench, tmp_path, old, new) == 2
    assert f"environments differ: threads: {threads} -> {threads + 1}. --force" in capsys.readouterr().err
    assert compare(bench, tmp_path, old, new, "--force") == 0
    assert f"Environments differ: threads: {threads} -> {threads + 1}." in capsys.readouterr().out
    # Load is no part of what must agree.
    assert compare(bench, tmp_path, old, result(load_before={"average": 9.0, "runnable": 4})) == 0
    # Nor may a field be missing in one of the two, where nobody knows whether it was the same.
    assert compare(bench, tmp_path, changed(old, ("env", "simd"), DELETE), old) == 2


@pytest.mark.parametrize(
    ("p50", "verdict", "code"),
    [(1.2, "slower", 1), (1.04, "no difference", 0), (1.0, "no difference", 0), (0.8, "faster", 0)],
)
def test_only_clear_changes_are_flagged(bench, result, tmp_path, capsys, p50, verdict, code):
    assert compare(bench, tmp_path, result(), result(p50)) == code
    change = f"{100 * (p50 - 1):+.1f} %"
    assert f"| made-up | 1000.00 | {1000 * p50:.2f} | {change} | {verdict} |" in capsys.readouterr().out


def test_overlapping_intervals_and_noise_are_not_flagged(bench, result):
    judge = bench("compare").judge
    old, new = result()["cases"][0], result(1.2)["cases"][0]
    assert judge(old, new) == "slower" and judge(new, old) == "faster"
    wide = {**new, "ci95": [old["ci95"][1] - 1e-6, 2.0]}
    assert judge(old, wide) == judge(wide, old) == "no difference"
    assert judge(old, {**new, "noisy": True}) == judge({**old, "noisy": True}, new) == "noisy"
    assert judge(old, {**new, "steps": 50}) == "not the same work: steps"
    assert judge(old, {**new, "ci95": None}) == "too few runs"


def test_results_without_a_shared_case_are_refused(bench, result, tmp_path, capsys):
    other = changed(result(), ("cases", 0, "id"), "another")
    assert compare(bench, tmp_path, result(), other) == 2
    assert "no timed case is in both; old: made-up; new: another" in capsys.readouterr().err
    both = result()
    both["cases"] += other["cases"]
    assert compare(bench, tmp_path, result(), both) == 0
    assert "Only in new: another" in capsys.readouterr().out


def test_the_table_claims_nothing_of_noisy_rows(bench, result):
    timed_markdown = bench("timed_tables").timed_markdown
    text = timed_markdown(result())
    assert "| 2 | 5 | 0.5 |" in text and "GEMM 50.0 GFLOP/s (float32), copy 10.0 GB/s" in text
    assert "Throughput 2.00 images/s (batch 2)." in text and "```sh\npython benchmarks/made_up.py\n```" in text
    text = timed_markdown(result(noisy=True))
    assert "| 2 (noisy) |" in text and "No claim: every row is noisy." in text and "Throughput" not in text
    both = result(batch=1)
    both["cases"] += result(0.1, batch=8, noisy=True)["cases"]
    text = timed_markdown(both)
    assert "Latency 1000.0 ms (batch 1" in text and "throughput 1.00 images/s (batch 1)" in text


def test_a_peer_is_shown_with_its_interval(bench, result):
    timed_markdown = bench("timed_tables").timed_markdown
    peer = {"name": "x", "version": "1", "p50": 1.0, "ratio_p50": 1.1, "ratio_ci95": [0.9, 1.2], "max_abs_diff": 0.0}
    text = timed_markdown(changed(result(), ("cases", 0, "peer"), peer))
    assert "| no difference |" in text and "1.1" not in text
    peer |= {"ratio_ci95": [1.05, 1.2]}
    assert "| 1.100 [1.050, 1.200] |" in timed_markdown(changed(result(), ("cases", 0, "peer"), peer))


def test_only_timed_results_have_this_table(bench, tmp_path, capsys):
    path = next(RESULTS.glob("counterfactual-*.json"))
    assert bench("report").main(["table", str(path)]) == 2
    assert "holds no timed cases" in capsys.readouterr().err
