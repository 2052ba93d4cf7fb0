from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from tiny_training import METHOD, Stripes, tiny_recipe

from gendiff.training import TrainingStopped, methods, register_method, train
from gendiff.training.checkpoint import newest_checkpoint, read_facts, read_state
from gendiff.training.progress import Log

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(folder: Path) -> bytes:
    return (folder / "final" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def go(recipe, folder, resume=False, **changes):
    return train(recipe, folder, resume, method=dataclasses.replace(METHOD, **changes), dataset=Stripes())


def start(tmp_path: Path, code: str, *command: str, **env: str) -> subprocess.Popen:
    """Run a script that has the tiny method and `train` at hand."""
    script = tmp_path / "script.py"
    imports = (
        "import os, signal, sys, time\nimport torch\nfrom tiny_training import *\nfrom gendiff.training import train\n"
    )
    script.write_text(imports + code)
    paths = os.pathsep.join((str(HERE), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **env}
    command = (sys.executable, *command, str(script), str(tmp_path / "run"))
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(tiny_recipe(), folder, method=METHOD, dataset=Stripes())
    return folder


def test_a_run_leaves_a_pipeline_that_loads_and_a_card(uninterrupted):
    pipeline = DDPMPipeline.from_pretrained(uninterrupted / "final")
    assert pipeline.unet.config.block_out_channels == [8, 16]
    card = (uninterrupted / "final" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    version = torch.__version__.split("+")[0]
    for fact in (
        "| steps | 8 |",
        "| samples seen | 32 |",
        "| seed | 3 |",
        "torch threads: 1",
        f"torch {version}",
    ):
        assert fact in card
    assert f"| loss | {rows(uninterrupted)[-1]['loss']:.4g} |" in card
    assert sorted(p.name for p in (uninterrupted / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


def test_the_log_has_losses_rates_and_norms(uninterrupted):
    log = rows(uninterrupted)
    assert [row["step"] for row in log] == list(range(1, 9))
    last = log[-1]
    for key in ("diffusion", "first_label", "learning_rate", "grad_norm/unet", "samples_per_second", "seconds"):
        assert last[key] is not None
    assert last["grad_norm/unet"] == pytest.approx(last["grad_norm"], rel=1e-4)
    # weight 0.01, risen linearly over the first half of 8 steps; step 3 has 2 steps behind it
    assert log[2]["loss"] == pytest.approx(log[2]["diffusion"] + 0.01 * 0.5 * log[2]["size"], rel=1e-6)
    assert last["loss"] == pytest.approx(last["diffusion"] + 0.01 * last["size"], rel=1e-6)


def test_the_saved_weights_are_the_averages(uninterrupted):
    state = read_state(newest_checkpoint(uninterrupted / "checkpoints"))
    final = DDPMPipeline.from_pretrained(uninterrupted / "final").unet
    trained = [state["modules"][f"unet.{name}"] for name, _ in final.named_parameters()]
    for saved, average in zip(final.parameters(), state["ema"]["shadow_params"], strict=True):
        assert torch.equal(saved, average)
    assert any(not torch.equal(saved, last) for saved, last in zip(final.parameters(), trained, strict=True))


def test_training_lowers_the_loss(tmp_path):
    go(tiny_recipe(steps=60, learning_rate=3e-3, log_every=20, checkpoint_every=0), tmp_path / "run")
    log = rows(tmp_path / "run")
    assert log[-1]["diffusion"] < 0.8 * log[0]["diffusion"]


KILLS = """
from gendiff.training import checkpoint, trainer

def at_step_2(models, batch, generator):
    calls.append(1)
    if len(calls) == 3:  # one call tries the objective before training
        os.kill(os.getpid(), signal.SIGKILL)
    return objective(models, batch, generator)

def slow(models, batch, generator):
    time.sleep(0.1)
    return objective(models, batch, generator)

def half_a_checkpoint(state, file):
    if state["schedule"]["last_epoch"] == 6:
        file.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)

def half_a_pipeline(folder, *arguments, **keywords):
    (folder / "half").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

calls, save = [], torch.save
for name in ("first steps", "from outside", "in a checkpoint", "in the end"):
    child = os.fork()
    if child == 0:
        function = {"first steps": at_step_2, "from outside": slow}.get(name, objective)
        if name == "in a checkpoint":
            checkpoint.torch.save = half_a_checkpoint
        if name == "in the end":
            DDPMPipeline.save_pretrained = lambda self, folder, **keywords: half_a_pipeline(folder)
        train(tiny_recipe(), f"{sys.argv[1]}/{name}", method=Method(build=build, objective=function), dataset=Stripes())
        os._exit(0)
    log = f"{sys.argv[1]}/{name}/log.jsonl"
    while name == "from outside" and not (os.path.exists(log) and len(open(log).readlines()) >= 4):
        time.sleep(0.01)
    if name == "from outside":
        os.kill(child, signal.SIGKILL)
    print("ended by signal", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of runs that were killed at different moments; one process imports, its forks are killed."""
    folder = tmp_path_factory.mktemp("killed")
    output = start(folder, KILLS).communicate()[0]
    assert output.count(f"ended by signal {-signal.SIGKILL}") == 4, output
    return folder / "run"


@pytest.mark.parametrize(
    ("moment", "checkpoint_steps", "leftover"),
    [
        ("first steps", (None,), None),
        ("from outside", (3, 6), None),
        ("in a checkpoint", (3,), "checkpoints/.partial-step-00000006/state.pt"),
        ("in the end", (8,), ".partial-final/half"),
    ],
)
def test_kill_9_and_resume_gives_the_same_bits(moment, checkpoint_steps, leftover, killed, uninterrupted):
    run = killed / moment
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert (read_facts(checkpoint)["step"] if checkpoint else None) in checkpoint_steps
    assert not (run / "final").exists()
    assert leftover is None or (run / leftover).read_bytes() == b"half"

    go(tiny_recipe(), run, resume=True)
    assert weights(run) == weights(uninterrupted)
    keys = ("step", "loss", "diffusion", "grad_norm")
    assert [[r[k] for k in keys] for r in rows(run)] == [[r[k] for k in keys] for r in rows(uninterrupted)]
    assert not list(run.rglob(".partial*"))


def test_two_processes_train_the_same_weights(tmp_path):
    code = (
        "settings = dict(steps=20, learning_rate=3e-3, log_every=10, gradient_accumulation=2, mixed_precision='bf16')\n"
        "recipe = tiny_recipe(**settings)\n"
        "pipeline = train(recipe, sys.argv[1], method=METHOD, dataset=Stripes())\n"
        "torch.save(pipeline.unet.state_dict(), f\"{sys.argv[1]}/rank{os.environ['RANK']}.pt\")\n"
    )
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    process = start(tmp_path, code, *launch, ACCELERATE_USE_CPU="true")
    output, run = process.communicate()[0], tmp_path / "run"
    assert process.returncode == 0, output
    assert "2 x cpu" in output
    first, second = (torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = DDPMPipeline.from_pretrained(run / "final").unet.state_dict()
    assert all(torch.equal(first[name], saved[name]) for name in first)
    losses = [row["diffusion"] for row in rows(run)]
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="was trained with 2 processes and cannot go on with 1"):
        go(tiny_recipe(steps=20, learning_rate=3e-3, gradient_accumulation=2), run, resume=True)


def test_sigterm_ends_with_a_checkpoint_and_resume_gives_the_same_bits(tmp_path, uninterrupted):
    def stopped_at_step_4(models, batch, generator):
        calls.append(1)
        if len(calls) == 5:  # one call tries the objective before training
            os.kill(os.getpid(), signal.SIGTERM)
        return METHOD.objective(models, batch, generator)

    calls, run = [], tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match=r"stopped by SIGTERM at step 4 of 8; continue with --resume"):
        go(tiny_recipe(), run, objective=stopped_at_step_4)
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_facts(newest_checkpoint(run / "checkpoints"))["step"] == 4
    go(tiny_recipe(), run, resume=True)
    assert weights(run) == weights(uninterrupted)


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    run = tmp_path / "run"
    go(tiny_recipe(), run)
    assert weights(run) == weights(uninterrupted)
    go(tiny_recipe(), run, resume=True)
    assert weights(run) == weights(uninterrupted)
    assert len(rows(run)) == 8


def test_previews_do_not_change_the_training(tmp_path, uninterrupted):
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, preview=dataclasses.replace(recipe.preview, every=4))
    go(recipe, tmp_path / "run", preview=METHOD.preview)
    previews = sorted((tmp_path / "run" / "previews").iterdir())
    assert [path.name for path in previews] == ["step-00000004.png", "step-00000008.png"]
    with Image.open(previews[0]) as picture:
        assert picture.size == (8, 16)
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    """Without noise, two micro-batches of 4 are one batch of 8: they hold the same samples in the same order."""

    def noiseless(models, batch, generator):
        prediction = models["unet"].eval()(batch["image"], 0, return_dict=False)[0]
        return {"diffusion": (prediction - batch["image"]).square().mean(), "size": prediction.square().mean()}

    settings = {"steps": 2, "ema_decay": 0}
    small = go(tiny_recipe(**settings, gradient_accumulation=2), tmp_path / "a", objective=noiseless)
    large = go(tiny_recipe(**settings, batch_size=8), tmp_path / "b", objective=noiseless)
    for a, b in zip(small.unet.parameters(), large.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)  # rounding of the mean, amplified by Adam


def test_half_precision_files_and_channels_last(tmp_path):
    from safetensors.torch import load_file

    pipeline = go(tiny_recipe(save_dtype="float16", channels_last=True), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "final" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in pipeline.unet.state_dict().items():
        assert saved[name].dtype == torch.float16
        assert torch.equal(saved[name], tensor.half())
    DDPMPipeline.from_pretrained(tmp_path / "run" / "final")


def test_only_modules_with_gradients_are_trained(tmp_path):
    def frozen(models, dataset):
        pipeline = METHOD.build(models, dataset)
        pipeline.unet.conv_in.requires_grad_(False)
        return pipeline

    pipeline = go(tiny_recipe(), tmp_path / "run", build=frozen)
    torch.manual_seed(3)  # the recipe's
    initial = METHOD.build({}, None)
    assert torch.equal(pipeline.unet.conv_in.weight, initial.unet.conv_in.weight)
    assert not torch.equal(pipeline.unet.conv_out.weight, initial.unet.conv_out.weight)

    def nothing_to_train(models, dataset):
        pipeline = METHOD.build(models, dataset)
        pipeline.unet.requires_grad_(False)
        return pipeline

    with pytest.raises(ValueError, match="no module with a parameter to train"):
        go(tiny_recipe(), tmp_path / "other", build=nothing_to_train)


def test_tensorboard_gets_every_row(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    go(tiny_recipe(tracker="tensorboard"), tmp_path / "run")
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([row["loss"] for row in rows(tmp_path / "run")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "was started with seed=3, the recipe now says 4"),
        ({"losses": {"diffusion": 2.0}}, r"was started with losses\.diffusion="),
        ({"train": {"learning_rate": 1.0}}, r"was started with train\.learning_rate=0\.001, the recipe now says 1\.0"),
        ({"train": {"steps": 7}}, r"is at step 8 already, past train\.steps=7"),
    ],
)
def test_only_the_same_run_is_resumed(uninterrupted, changes, message):
    plain = tiny_recipe().to_dict()
    plain["train"] |= changes.pop("train", {})
    with pytest.raises(ValueError, match=message):
        go(type(tiny_recipe()).from_dict(plain | changes), uninterrupted, resume=True)


def test_a_longer_run_may_continue_a_shorter_one(tmp_path):
    go(tiny_recipe(), tmp_path / "run")
    go(tiny_recipe(steps=9, log_every=3, keep_checkpoints=1, save_dtype="float16"), tmp_path / "run", resume=True)
    assert rows(tmp_path / "run")[-1]["step"] == 9
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000009"]


def test_a_full_folder_needs_resume(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty: continue the run in it with --resume"):
        go(tiny_recipe(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_resume_without_a_checkpoint_starts_anew(tmp_path, uninterrupted, capsys):
    go(tiny_recipe(), tmp_path / "run", resume=True)
    assert "from the start" in capsys.readouterr().out
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot write to .*file.run"):
        go(tiny_recipe(), tmp_path / "file" / "run")


def test_what_the_objective_does_not_return_is_named_and_nothing_is_written(tmp_path):
    plain = tiny_recipe().to_dict() | {"losses": {"difusion": 1.0}}
    with pytest.raises(ValueError, match=r"unknown key losses\.difusion\. Did you mean 'diffusion'\?"):
        go(type(tiny_recipe()).from_dict(plain), tmp_path / "run")
    plain = tiny_recipe().to_dict() | {"models": {"unet": {"sampel_size": 8}}}
    with pytest.raises(ValueError, match=r"unknown key models\.unet\.sampel_size\. Did you mean 'sample_size'\?"):
        go(type(tiny_recipe()).from_dict(plain), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    def broken(models, batch, generator):
        calls.append(1)
        terms = METHOD.objective(models, batch, generator)
        return {**terms, "size": terms["size"] * (float("nan") if len(calls) == 6 else 1.0)}

    calls = []
    with pytest.raises(FloatingPointError, match="loss, size stopped being finite by step 5"):
        go(tiny_recipe(), tmp_path / "run", objective=broken)
    calls = []
    with pytest.raises(FloatingPointError, match="weights of unet are not finite at step 6"):
        go(tiny_recipe(log_every=100), tmp_path / "other", objective=broken)
    for folder in ("run", "other"):
        assert read_facts(newest_checkpoint(tmp_path / folder / "checkpoints"))["step"] == 3
        assert not (tmp_path / folder / "final").exists()


def test_a_cpu_launch_that_would_silently_be_one_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="started one process only"):
        go(tiny_recipe(), tmp_path / "run")


def test_methods_are_found_by_task_name(monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", {})
    register_method("stripes", "tiny_training:METHOD")
    assert methods.method_names() == ("stripes",)
    assert methods.get_method("stripes") is METHOD
    with pytest.raises(ValueError, match="a method for task 'stripes' exists already"):
        register_method("stripes", METHOD)
    with pytest.raises(ValueError, match="unknown task 'dots'; known: stripes"):
        methods.get_method("dots")


def test_a_log_that_was_cut_off_goes_on_at_the_resumed_step(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    log = Log(path, resumed_at=1)
    log.append({"step": 2, "loss": float("nan")})
    assert rows(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}]
