"""The command line: quick help, one line for every error, exit codes."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

import gendiff
from gendiff.causal.graph import CausalGraph, Variable
from gendiff.cli import main
from gendiff.cli.show import draw_graph
from gendiff.models.image_classifier import ImageClassifier


@pytest.fixture
def gendiff_command(capsys):
    """Run a command in this process: exit code, standard output and standard error."""

    def run(*arguments: str) -> SimpleNamespace:
        code = main([str(argument) for argument in arguments])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def run_folder(tmp_path, tiny_counterfactual_pipeline):
    """What a finished training run leaves, its log cut off in the middle of a row."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: digits\ntask: counterfactual\ntrain: {steps: 20}\n")
    (folder / "log.jsonl").write_text(
        '{"step": 10, "loss": 0.987654}\n{"step": 20, "loss": 0.123456}\n{"step": 30, "lo'
    )
    tiny_counterfactual_pipeline().save_pretrained(folder / "final")
    (folder / "final" / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n\n# digits\n\nTrained on [data] of mine.\n\n## Use\n\nhidden part\n"
    )
    return folder


def assert_one_line(result: SimpleNamespace, message: str, code: int = 2) -> None:
    assert result.code == code
    assert result.err.startswith("gendiff: ")
    assert result.err.count("\n") == 1 and result.err.endswith("\n")
    assert message in result.err
    assert not result.out


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; from gendiff.cli import main; code = main(['--help']); sys.exit(code or 'torch' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in ("list", "show", "train", "data"))
    # The promise is half a second on a free machine. Processor time, because a busy one stretches the clock.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_module_and_exit_code():
    result = subprocess.run([sys.executable, "-m", "gendiff", "sho"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert result.stderr.startswith("gendiff: No such command 'sho'.") and result.stderr.count("\n") == 1


def test_version_and_no_command(gendiff_command):
    assert gendiff_command("--version").out == f"gendiff {gendiff.__version__}\n"
    bare = gendiff_command()
    assert bare.code == 0 and "Commands" in bare.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'. (try 'gendiff --help')"),
        (["list", "--jsn"], "(try 'gendiff list --help')"),
        (["show"], "(try 'gendiff show --help')"),
        (["data"], "Missing command. (try 'gendiff data --help')"),
        (["train", "no-such-recipe"], "no recipe 'no-such-recipe'"),
        (["data", "import", "mnist", "/no/such/file"], "/no/such/file does not exist"),
        (["show", "/no/such/folder"], "'/no/such/folder' is neither a folder nor a built-in checkpoint"),
    ],
)
def test_bad_input_is_one_line(gendiff_command, arguments, message):
    assert_one_line(gendiff_command(*arguments), message)


def test_debug_shows_the_traceback(gendiff_command):
    with pytest.raises(ValueError, match="/no/such/folder"):
        gendiff_command("show", "/no/such/folder", "--debug")


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ValueError("first\n  second"), "gendiff: first second\n", 2),
        (KeyError("no variable 'x'"), "gendiff: no variable 'x'\n", 2),
        (PermissionError(13, "Permission denied", "out/a.png"), "gendiff: out/a.png: Permission denied\n", 2),
        (ModuleNotFoundError("No module named 'tensorboard'"), "gendiff: No module named 'tensorboard'\n", 2),
        (ZeroDivisionError("oops"), "gendiff: unexpected ZeroDivisionError: oops (--debug shows the traceback)\n", 1),
        (KeyboardInterrupt(), "", 130),
    ],
)
def test_errors_of_every_kind(gendiff_command, monkeypatch, error, message, code):
    def fail():
        raise error

    monkeypatch.setattr("gendiff.pipelines.registry.builtin_checkpoints", fail)
    result = gendiff_command("list")
    assert (result.err, result.code) == (message, code)


def test_list(gendiff_command):
    text = gendiff_command("list")
    assert text.code == 0
    offers = json.loads(gendiff_command("list", "--json").out)
    assert set(offers) == {"tasks", "checkpoints", "datasets", "recipes"}
    assert {"counterfactual", "image-generation", "next-frequency"} <= {task["name"] for task in offers["tasks"]}
    assert {"pendulum", "glyphs", "handwriting"} <= {dataset["name"] for dataset in offers["datasets"]}
    assert all(dataset["about"] for dataset in offers["datasets"])
    for rows in offers.values():
        assert all(row["name"] in text.out for row in rows)


def test_show_a_checkpoint(gendiff_command, run_folder, tiny_unet):
    result = gendiff_command("show", run_folder / "final")
    assert result.code == 0, result.err
    assert result.out.startswith("final: CounterfactualPipeline\n")
    unet = next(line for line in result.out.splitlines() if line.strip().startswith("unet"))
    assert unet.split()[1:4] == ["PatchUNet2DModel", f"{tiny_unet().num_parameters():,}", "F32"]
    assert "thickness, slant ──▶ intensity\n" in result.out
    assert "Trained on [data] of mine." in result.out
    assert "hidden part" not in result.out and "license" not in result.out


def test_show_a_run_with_its_last_whole_log_line(gendiff_command, run_folder):
    result = gendiff_command("show", run_folder)
    assert result.code == 0, result.err
    assert result.out.startswith("digits: run of the task counterfactual\ncheckpoints: step-00000020\n")
    assert "last log line: step 20, loss 0.1235\n" in result.out
    assert "train:\n  steps: 20\n" in result.out
    assert "final: CounterfactualPipeline\n" in result.out


@pytest.fixture
def classifier_run(tmp_path):
    """A run folder whose result is a bare model."""
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: letters\ntask: classification\n")
    model = ImageClassifier(1, 12, 2, widths=(8,), feature_dim=8, classes=("a", "b"))
    model.save_pretrained(folder / "final")
    (folder / "final" / "README.md").write_text("---\nlicense: mit\n---\n\n# letters\n\nKnows [a] and b.\n\n## Use\n")
    (folder / "final" / "recipe.yaml").write_text("name: letters\ntask: classification\n")  # as beside every card
    return folder


def test_show_a_model_without_a_pipeline(gendiff_command, classifier_run):
    result = gendiff_command("show", classifier_run / "final")
    assert result.code == 0, result.err
    assert result.out.startswith("final: ImageClassifier\ntask classification, in ")
    # 80 of the convolution, 16 of the norm, 584 of the hidden layer, 18 of the last
    assert "\n698 weights, F32\n" in result.out
    assert "Knows [a] and b." in result.out and "license" not in result.out
    run = gendiff_command("show", classifier_run)
    assert run.out.startswith("letters: run of the task classification\n")
    assert "final: ImageClassifier\n" in run.out


def test_show_a_damaged_model(gendiff_command, classifier_run):
    final = classifier_run / "final"
    weights = final / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_one_line(gendiff_command("show", final), "diffusion_pytorch_model.safetensors is damaged")
    weights.unlink()
    assert_one_line(gendiff_command("show", final), "holds no weights (*.safetensors) for the ImageClassifier")
    (final / "config.json").write_text("{}")
    assert_one_line(gendiff_command("show", final), "config.json does not name a model class")
    (final / "config.json").write_text("{")
    assert_one_line(gendiff_command("show", final), "config.json is damaged: not JSON")


def test_classifiers_that_ship_are_listed_and_shown_by_name(gendiff_command):
    offers = json.loads(gendiff_command("list", "--json").out)
    tasks = {row["name"]: row["task"] for row in offers["checkpoints"]}
    assert tasks["fmnist-cnn"] == tasks["digit-cnn"] == tasks["emoji-cnn"] == "classification"
    assert tasks["counterfactual-pendulum"] == "counterfactual"
    result = gendiff_command("show", "fmnist-cnn")
    assert result.code == 0, result.err
    assert result.out.startswith("fmnist-cnn: ImageClassifier\ntask classification, in ")


def test_show_what_is_neither(gendiff_command, tmp_path, run_folder):
    assert_one_line(gendiff_command("show", tmp_path), "neither a saved pipeline (model_index.json) nor a run folder")
    (run_folder / "recipe.yaml").write_text("a: [1")
    assert_one_line(gendiff_command("show", run_folder), "recipe.yaml is damaged: not YAML")
    weights = run_folder / "final" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps({}))
    assert_one_line(gendiff_command("show", run_folder / "final"), "holds its weights as a pickle")


def test_graph_as_text():
    variables = [Variable(name) for name in ("sun", "ball", "length", "place", "lone")]
    edges = [(cause, effect) for cause in ("sun", "ball") for effect in ("length", "place")]
    assert draw_graph(CausalGraph(variables, edges)) == "sun, ball ──▶ length, place\nlone"


def test_train_hands_recipe_folder_and_changes_on(gendiff_command, monkeypatch, tmp_path):
    from gendiff.training import trainer

    seen = []
    monkeypatch.setattr(trainer, "train", lambda recipe, out, resume: seen.append((recipe, out, resume)))
    changes = ("--set", "train.steps=3", "--set", "seed=7")
    result = gendiff_command("train", "counterfactual-pendulum", "--out", tmp_path, "--resume", *changes)
    assert result.code == 0, result.err
    recipe, out, resume = seen[0]
    assert (recipe.name, recipe.train.steps, recipe.seed) == ("counterfactual-pendulum", 3, 7)
    assert (out, resume) == (tmp_path, True)
    assert_one_line(
        gendiff_command("train", "counterfactual-pendulum", "--set", "train.step=3"), "Did you mean 'steps'"
    )


def test_a_stopped_run_says_how_to_go_on(gendiff_command, monkeypatch):
    from gendiff.training import trainer

    def stop(recipe, out, resume):
        raise trainer.TrainingStopped("stopped at step 3 of 5; continue with --resume.")

    monkeypatch.setattr(trainer, "train", stop)
    result = gendiff_command("train", "counterfactual-pendulum")
    assert_one_line(result, "continue with --resume", code=130)
