"""Imports run one way. Read from the source, so that no import order can hide a wrong one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gendiff

ROOT = Path(gendiff.__file__).parent

# A part may import itself and these; `gendiff/__init__.py` and `__main__.py` stand above all parts.
ALLOWED = {
    "nn": set(),
    "causal": set(),
    "samplers": {"nn"},
    "models": {"nn", "causal"},
    "data": {"causal"},
    "oracles": {"causal", "samplers"},
    "metrics": {"causal", "data", "models", "nn"},
    "pipelines": {"samplers", "models", "nn", "causal"},
    "convert": {"models", "samplers", "nn", "causal", "pipelines"},
    "training": {"pipelines", "samplers", "models", "nn", "causal", "data", "metrics"},
    "app": {"pipelines", "samplers", "models", "nn", "causal", "data", "metrics"},
    "cli": {"app", "pipelines", "samplers", "models", "nn", "causal", "data", "metrics", "training", "convert"},
}


def parts_imported(path: Path) -> set[str]:
    """Parts of gendiff that a file imports, relative imports and those inside functions included."""
    package = path.relative_to(ROOT.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    names = (name.split(".") for name in found)
    return {name[1] for name in names if name[0] == "gendiff" and len(name) > 1 and name[1] in ALLOWED}


def test_every_part_has_its_place():
    parts = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert parts <= set(ALLOWED)
    assert parts >= {"cli", "app", "pipelines", "samplers", "models", "nn", "causal", "data", "training"}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_one_way(part):
    for path in (ROOT / part).rglob("*.py"):
        wrong = parts_imported(path) - ALLOWED[part] - {part}
        assert not wrong, f"{path.relative_to(ROOT.parent)} imports {', '.join(sorted(wrong))}"


def test_the_order_has_no_cycle():
    below = {part: set(allowed) for part, allowed in ALLOWED.items()}
    while below:
        lowest = {part for part, rest in below.items() if not rest}
        assert lowest, f"cycle among {sorted(below)}"
        below = {part: rest - lowest for part, rest in below.items() if part not in lowest}


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("statement", ["import gendiff", "import gendiff.pipelines.registry", "import gendiff.cli"])
def test_names_alone_cost_no_heavy_import(statement):
    heavy = {"torch", "numpy", "diffusers", "transformers", "torchvision", "sklearn", "skimage", "matplotlib"}
    assert not heavy & modules_after(statement)


def test_the_pipelines_need_no_heavy_neighbours():
    loaded = modules_after("import gendiff; gendiff.CounterfactualPipeline")
    assert "torch" in loaded
    assert not {"sklearn", "skimage", "matplotlib", "tensorboard"} & loaded


def test_exported_names_exist_and_agree_with_what_type_checkers_see():
    for name in gendiff.__all__:
        assert getattr(gendiff, name) is not None
    assert set(gendiff.__all__) <= set(dir(gendiff))
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == {(module, name) for name, module in gendiff._MODULE_OF.items()}
    assert {name for _, name in typed} == set(gendiff.__all__) - {"__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'pipelin'"):
        _ = gendiff.pipelin
