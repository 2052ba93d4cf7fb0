"""Pipelines whose classes live outside diffusers must save, push and load like its own."""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.callbacks import PipelineCallback
from huggingface_hub import ModelCard

import gendiff
from gendiff.pipelines import base, registry

CHANGED = {"channels": 3, "mechanism": "affine", "p_block": 0.25, "num_train_timesteps": 80}
IMAGE = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)

RELOAD = """
import sys, torch
from safetensors.torch import save_file
import gendiff
torch.set_num_threads(1)
pipe = gendiff.load_pipeline(sys.argv[1])
image = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
images = pipe(image, {"thickness": 3.0}, num_inference_steps=3, output_type="pt").images
save_file({"images": images}, sys.argv[2])
"""

TOY = '''
"""A pipeline of somebody else: own network, own scheduler, one setting that is not the default."""
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
import torch

from gendiff import GendiffPipeline, Step, sample


class ToyModel(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sizes=(2, 2)):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(sizes[0]))


class ToyScheduler(SchedulerMixin, ConfigMixin):
    @register_to_config
    def __init__(self, num_train_timesteps: int = 10):
        self.timesteps = torch.arange(num_train_timesteps).flip(0)

    def step(self, model_output, timestep, sample, return_dict=False):
        return (sample + model_output,)


class ToyPipeline(GendiffPipeline):
    _callback_tensor_inputs = ("latents", "bias")

    def __init__(self, model: ToyModel, scheduler: ToyScheduler):
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, start, callback_on_step_end=None, callback_on_step_end_tensor_inputs=("latents",)):
        read = {"bias": torch.zeros_like(start), "secret": 1}
        self._guidance_scale, self._num_timesteps = 2.0, len(self.scheduler.timesteps)
        predict = lambda state, step: self.model.scale + read["bias"]
        on_step_end = self.adapt_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, read)
        return sample(predict, self.scheduler, start, on_step_end=on_step_end, progress=False)
'''


@pytest.fixture
def saved(tmp_path, tiny_counterfactual_pipeline):
    """Folder of a counterfactual pipeline with settings other than the defaults."""
    tiny_counterfactual_pipeline(**CHANGED).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Module of a pipeline outside gendiff, known to the registry by its one entry."""
    (tmp_path / "toy_pipeline.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.TASKS, "toy", registry.Task("toy_pipeline.ToyPipeline", "toy-weights", "a toy"))
    yield importlib.import_module("toy_pipeline")
    sys.modules.pop("toy_pipeline")


def component_classes():
    """Every network and scheduler that gendiff defines."""
    for package in ("models", "samplers"):
        root = importlib.import_module(f"gendiff.{package}")
        for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            module = importlib.import_module(info.name)
            for value in vars(module).values():
                own = isinstance(value, type) and value.__module__ == info.name
                if own and issubclass(value, ModelMixin | SchedulerMixin):
                    yield value


@pytest.mark.parametrize("cls", list(component_classes()), ids=lambda cls: cls.__name__)
def test_component_modules_hold_the_name_diffusers_looks_up(cls):
    wanted = "ModelMixin" if issubclass(cls, ModelMixin) else "SchedulerMixin"
    assert hasattr(sys.modules[cls.__module__], wanted)


def test_a_model_without_that_name_in_its_module_would_not_load(toy, tmp_path):
    toy.ToyPipeline(toy.ToyModel(), toy.ToyScheduler()).save_pretrained(tmp_path / "toy")
    del toy.ModelMixin
    with pytest.raises(ValueError, match="loading method"):
        gendiff.load_pipeline(tmp_path / "toy")


def test_a_fresh_interpreter_reloads_and_repeats(saved, tmp_path, tiny_counterfactual_pipeline):
    from safetensors.torch import load_file

    run = [sys.executable, "-c", RELOAD, str(saved), str(tmp_path / "images.safetensors")]
    result = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    pipe = tiny_counterfactual_pipeline(**CHANGED)
    expected = pipe(IMAGE, {"thickness": 3.0}, num_inference_steps=3, output_type="pt").images
    assert torch.equal(load_file(tmp_path / "images.safetensors")["images"], expected)


def test_pipeline_modules_import_their_components_at_the_top():
    for task in registry.TASKS.values():
        cls = task.load_class()
        module = sys.modules[cls.__module__]
        for name, kinds in cls._get_signature_types().items():
            # Settings may be Sequence[str] or str, and components None.
            for kind in (kind for kind in kinds if isinstance(kind, type) and kind.__module__ != "builtins"):
                # Not by its name: transformers gives one class several.
                assert any(value is kind for value in vars(module).values()), (name, kind)


def test_module_paths_are_a_file_format(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert {name: tuple(pair) for name, pair in index.items() if isinstance(pair, list)} == {
        "encoder": ("gendiff.models.causal_encoder", "CausalEncoder"),
        "mechanisms": ("gendiff.models.causal_mechanisms", "CausalMechanisms"),
        "projection": ("gendiff.models.latent_projection", "LatentProjection"),
        "unet": ("gendiff.models.patch_unet", "PatchUNet2DModel"),
        "scheduler": ("diffusers", "DDIMScheduler"),
    }


@pytest.mark.parametrize("cls", list(component_classes()), ids=lambda cls: cls.__name__)
def test_no_module_lies_in_a_folder_named_like_a_diffusers_pipeline(cls):
    parent = cls.__module__.split(".")[-2]
    assert not hasattr(diffusers.pipelines, parent)


def test_load_pipeline_gives_the_class_where_diffusers_cannot(saved):
    with pytest.raises(AttributeError, match="CounterfactualPipeline"):
        DiffusionPipeline.from_pretrained(saved)
    pipe = gendiff.load_pipeline(saved)
    assert type(pipe) is gendiff.CounterfactualPipeline
    assert pipe.mechanisms.config["mechanism"] == "affine"
    assert pipe.projection.config["p_block"] == 0.25
    assert pipe.scheduler.config["num_train_timesteps"] == 80


def test_pushed_to_the_hub_and_loaded_by_id(tmp_path, monkeypatch, tiny_counterfactual_pipeline):
    hub, options = tmp_path / "hub", {}
    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("diffusers.utils.hub_utils.load_or_create_model_card", lambda *_, **__: ModelCard("# card"))
    monkeypatch.setattr(
        "diffusers.utils.hub_utils.upload_folder", lambda folder_path, **_: shutil.copytree(folder_path, hub)
    )

    def snapshot_download(name, **kwargs):
        options.update(kwargs, name=name)
        return str(hub)

    monkeypatch.setattr(base, "snapshot_download", snapshot_download)
    pipe = tiny_counterfactual_pipeline(**CHANGED)
    pipe.push_to_hub("someone/digits")
    for loaded in (
        gendiff.load_pipeline("someone/digits", revision="v1"),
        gendiff.CounterfactualPipeline.from_pretrained("someone/digits", revision="v1"),
    ):
        assert torch.equal(loaded.unet.unet.conv_in.weight, pipe.unet.unet.conv_in.weight)
        assert (options["name"], options["revision"]) == ("someone/digits", "v1")
        assert "*.bin" in options["ignore_patterns"]


def test_a_hub_that_does_not_deliver_is_one_oserror():
    with pytest.raises(OSError, match="'someone/nothing' is no folder here and could not be fetched"):
        gendiff.load_pipeline("someone/nothing")


def test_a_new_task_costs_one_entry(toy, tmp_path):
    torch.manual_seed(0)
    made = toy.ToyPipeline(toy.ToyModel(sizes=(5, 3)), toy.ToyScheduler(num_train_timesteps=4))
    made.save_pretrained(tmp_path / "toy")
    loaded = gendiff.pipeline("toy", tmp_path / "toy")
    assert type(loaded) is toy.ToyPipeline
    assert torch.equal(loaded(torch.zeros(5)), 4 * made.model.scale)


def test_device_and_dtype(saved):
    pipe = gendiff.pipeline("counterfactual", saved, device="cpu", dtype=torch.float64)
    assert pipe.unet.dtype == torch.float64
    pipe.unet.half().save_pretrained(saved / "unet")
    assert gendiff.pipeline("counterfactual", saved).unet.dtype == torch.float32
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        gendiff.pipeline("counterfactual", saved, device="nonsense")


def test_supplied_components_need_not_be_in_the_folder(saved, tiny_unet):
    shutil.rmtree(saved / "unet")
    unet = tiny_unet(channels=3)
    assert gendiff.load_pipeline(saved, unet=unet).unet is unet


def test_unknown_names_are_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown task 'counterfactul'; known: .* Did you mean 'counterfactual'\?"):
        gendiff.pipeline("counterfactul")
    with pytest.raises(ValueError, match="'digits' is neither a folder, nor a hub repository"):
        gendiff.pipeline("counterfactual", "digits")
    with pytest.raises(ValueError, match="neither a folder"):
        gendiff.load_pipeline("no/such/folder")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(path: Path) -> None:
    path.rename(path.with_suffix(".bin"))


def _drop_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors.pop("unet.conv_in.weight")
    save_file(tensors, path)


def _reshape_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({**load_file(path), "unet.conv_in.weight": torch.zeros(1)}, path)


def _foreign(path: Path) -> None:
    path.write_text(path.read_text().replace("CounterfactualPipeline", "DDIMPipeline"))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "path", "error", "message"),
    [
        (_remove, "model_index.json", OSError, "is not a saved pipeline: it has no model_index.json"),
        (_cut, "model_index.json", ValueError, "is damaged: not JSON"),
        (_foreign, "model_index.json", ValueError, "holds a DDIMPipeline"),
        (_remove, "unet", OSError, "is missing; it should hold the PatchUNet2DModel"),
        (_remove, WEIGHTS, OSError, "holds no weights"),
        (_cut, WEIGHTS, ValueError, "safetensors is damaged"),
        (_pickle, WEIGHTS, ValueError, "pickle .* can run code"),
        (_drop_tensor, WEIGHTS, ValueError, "weights of 'unet' lack 1 tensors, e.g. unet.conv_in.weight"),
        (_reshape_tensor, WEIGHTS, ValueError, "conv_in.weight"),
        (_cut, "unet/config.json", ValueError, "config.json is damaged: not JSON"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(saved, damage, path, error, message):
    damage(saved / path)
    for load in (gendiff.load_pipeline, gendiff.CounterfactualPipeline.from_pretrained):
        with pytest.raises(error, match=message) as caught:
            load(saved)
        assert str(saved) in str(caught.value)


def test_pickles_are_refused_before_anything_is_unpickled(saved):
    marker = saved / "ran"
    (saved / WEIGHTS).unlink()
    # A pickle that would create the marker: os.open is called with these arguments when it is read.
    (saved / "unet" / "diffusion_pytorch_model.bin").write_bytes(
        b"cos\nopen\n(S'" + str(marker).encode() + b"'\nI%d\ntR." % (64 | 1)
    )
    with pytest.raises(ValueError, match="pickle"):
        gendiff.load_pipeline(saved)
    with pytest.raises(ValueError, match="use_safetensors=False"):
        gendiff.load_pipeline(saved, use_safetensors=False)
    assert not marker.exists()


def test_a_model_of_another_task_is_refused(saved, toy):
    with pytest.raises(ValueError, match="holds a CounterfactualPipeline, not a ToyPipeline"):
        gendiff.pipeline("toy", saved)


@pytest.mark.parametrize("name", list(registry.builtin_checkpoints()))
def test_built_in_checkpoints_load_and_name_no_machine(name):
    checkpoint = registry.builtin_checkpoints()[name]
    assert checkpoint.task in registry.TASKS
    pipe = gendiff.load_pipeline(name)
    assert isinstance(pipe, gendiff.GendiffPipeline)
    for path in checkpoint.path.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path
    assert (checkpoint.path / "README.md").is_file()


def test_callbacks_see_and_replace_the_state_and_what_the_predictor_reads(toy):
    pipe = toy.ToyPipeline(toy.ToyModel(sizes=(1, 1)), toy.ToyScheduler(num_train_timesteps=3))
    pipe.model.scale.data.fill_(1.0)
    seen = []

    def callback(pipe, index, timestep, kwargs):
        seen.append((index, int(timestep), kwargs["latents"].item(), kwargs["bias"].item(), pipe.num_timesteps))
        return {"bias": torch.tensor([10.0])} if index == 0 else {"latents": -kwargs["latents"]}

    result = pipe(torch.zeros(1), callback, ["latents", "bias"])
    assert seen == [(0, 2, 1.0, 0.0, 3), (1, 1, 12.0, 10.0, 3), (2, 0, -1.0, 10.0, 3)]
    assert result.item() == 1.0
    assert pipe.guidance_scale == 2.0


def test_callback_names_and_results_are_checked(toy):
    pipe = toy.ToyPipeline(toy.ToyModel(sizes=(1, 1)), toy.ToyScheduler())
    calls = []
    with pytest.raises(ValueError, match=r"has 'latent'; known: latents, bias. Did you mean 'latents'\?"):
        pipe(torch.zeros(1), lambda *args: calls.append(args) or {}, ["latent"])
    with pytest.raises(ValueError, match="has 'secret'"):
        pipe(torch.zeros(1), lambda *args: calls.append(args) or {}, ["secret"])
    assert not calls
    with pytest.raises(ValueError, match="must return a dict, got NoneType"):
        pipe(torch.zeros(1), lambda *args: None)
    assert pipe.adapt_callback(None, ["secret"]) is None


def test_callback_objects_of_diffusers_bring_their_own_names(toy):
    class Halve(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] * 0}

    pipe = toy.ToyPipeline(toy.ToyModel(sizes=(1, 1)), toy.ToyScheduler())
    halve = Halve(cutoff_step_ratio=1.0)
    assert pipe(torch.ones(1), halve).item() == 0
