"""What the README shows is true: its Python runs, its commands exist, its tables are those of the results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gendiff.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


COUNTERFACTUAL, VIDEO = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_five_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(COUNTERFACTUAL, scope)
    assert (tmp_path / "counterfactual.png").is_file()
    assert (
        scope["out"].counterfactual["thickness"].item() == 5 and scope["out"].counterfactual["intensity"].item() == 120
    )


def test_the_video_has_several_futures(capsys):
    scope: dict = {}
    exec(VIDEO, scope)
    futures = [output.frames for output in scope["futures"]]
    assert {tuple(frames.shape) for frames in futures} == {(1, 16, 1, 32, 32)}
    assert not futures[0].equal(futures[1]) and not futures[1].equal(futures[2])
    lines = [line for line in capsys.readouterr().out.splitlines() if "bytes" in line]
    assert len(lines) == 1 + 15, "five given frames, then 59 more, four at a time"
    assert len({line.split(" s ")[1] for line in lines}) == 1, "memory does not grow"


def test_every_command_it_names_exists():
    groups = {group.name for group in app.registered_groups}
    known = groups | {command.name for command in app.registered_commands}
    named = set(re.findall(r"^gendiff (\w+)", README, re.MULTILINE))
    assert named and named <= known


def test_its_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    models = [path for path in (ROOT / "gendiff" / "checkpoints").iterdir() if path.is_dir()]
    assert len(models) >= 5 and {page.parent for page in readme.PAGES} == {ROOT, ROOT / "docs", *models}
    assert len(readme.MARK.findall(README)) >= 2
    for page in readme.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme.MARK.search(text) and readme.filled(text, ROOT / "benchmarks" / "results") == text, page
        for mark in readme.MARK.finditer(text):
            if mark["name"] == "classifiers" and page.parent != ROOT:
                assert mark["row"] == page.parent.name, "a card shows its own classifier"
    sys.modules.pop("readme")


def test_files_it_points_to_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
