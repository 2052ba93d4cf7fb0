"""`gendiff demo`: the page's path on success, one line and no files otherwise."""

from __future__ import annotations

import pytest

from gendiff.app import gallery
from gendiff.cli import main
from gendiff.data.pendulum import pendulum_graph
from gendiff.pipelines import registry


@pytest.fixture
def installed(tmp_path, monkeypatch, tiny_counterfactual_pipeline):
    folder = tmp_path / "checkpoints" / "counterfactual-pendulum"
    tiny_counterfactual_pipeline(graph=pendulum_graph(), channels=3).save_pretrained(folder)
    (folder / "recipe.yaml").write_text("data: {name: pendulum, size: 16, num_images: 5}\n")
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path


def demo(*arguments) -> int:
    return main(["demo", *(str(argument) for argument in arguments)])


def test_it_prints_where_the_page_is(installed, capsys):
    out = installed / "out"
    assert demo("--out", out, "--steps", 1, "--num-images", 2, "--seed", 3, "--device", "cpu") == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "--seed 3 --steps 1 --num-images 2 --device cpu" in text
    assert len(list(out.rglob("image-*.png"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "'--steps'"),
        (("--steps", "5000", "--num-images", "2"), "num_inference_steps must lie in 1..100, got 5000"),
        (("--seed", "-4"), "'--seed'"),
        (("--num-images", "0"), "'--num-images'"),
        (("--num-images", "1001"), "num_images must be at most 1000, the number of test images, got 1001"),
        (("--device", "abacus"), "device 'abacus' cannot be used on this machine"),
        (("--steps", "many"), "'--steps'"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(installed, capsys, arguments, message):
    assert demo("--out", installed / "out", *arguments) == 2
    written = capsys.readouterr()
    assert written.err.startswith("gendiff: ") and written.err.count("\n") == 1 and message in written.err
    assert not written.out and not (installed / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_any_work(installed, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "_build", lambda *arguments: pytest.fail("work began"))
    (installed / "file").write_text("in the way")
    assert demo("--out", installed / "file" / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("gendiff: ") and error.count("\n") == 1 and str(installed / "file") in error
    assert (installed / "file").read_text() == "in the way"


def test_a_damaged_checkpoint_is_named(installed, capsys):
    weights = next((installed / "checkpoints").rglob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert demo("--out", installed / "out", "--steps", 1) == 2
    assert "counterfactual-pendulum" in capsys.readouterr().err
    assert not (installed / "out").exists()


def test_the_command_is_listed(capsys):
    assert main(["--help"]) == 0
    assert "Build a gallery page of all built-in checkpoints." in capsys.readouterr().out
