"""The base class of all pipelines, and the two functions that load one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from gendiff.pipelines.registry import TASKS, builtin_checkpoints, get_task, suggest, task_of
from gendiff.pipelines.saved import PICKLES, check_folder, read_index
from gendiff.samplers.loop import State, Step

DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class GendiffPipeline(DiffusionPipeline):
    """A diffusers pipeline whose components may be defined in gendiff.

    Loads built-in checkpoints by name, folders, and hub repositories; only safetensors, never pickles. A subclass
    imports the modules of all its components at the top of its own module: diffusers finds them in `sys.modules` only.
    """

    _callback_tensor_inputs: Sequence[str] = ("latents",)
    _guidance_scale: float = 1.0
    _num_timesteps: int = 0

    if TYPE_CHECKING:
        # diffusers decorates it with torch.compiler.disable, which hides its signature from type checkers.
        def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any: ...

    @property
    def guidance_scale(self) -> float:
        """Strength of guidance in the running or last call; 1 is off."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Length of the walk in the running or last call."""
        return self._num_timesteps

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike[str], **kwargs: Any) -> str:
        """Folder of a built-in checkpoint, or of a hub repository after fetching it.

        diffusers' own download demands a `.py` file in the repository for each component defined elsewhere, which ours
        do not need: they are installed.

        Raises:
            ValueError: the name is neither a built-in checkpoint nor shaped like "owner/name".
            OSError: the hub did not deliver.
        """
        name = os.fspath(pretrained_model_name)
        builtin = builtin_checkpoints()
        if name in builtin:
            return str(builtin[name].path)
        if name.count("/") != 1 or not all(name.split("/")) or name.startswith("."):
            raise ValueError(
                f"{name!r} is neither a folder, nor a hub repository 'owner/name', nor a built-in checkpoint; "
                f"{suggest(name, builtin)}"
            )
        options = {key: kwargs[key] for key in DOWNLOAD_OPTIONS if kwargs.get(key) is not None}
        try:
            return snapshot_download(name, ignore_patterns=[f"*{suffix}" for suffix in PICKLES], **options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise OSError(f"{name!r} is no folder here and could not be fetched from the hub: {reason}") from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a built-in checkpoint, a folder or a hub repository that holds this class.

        Args:
            pretrained_model_name_or_path: "counterfactual-pendulum", "path/to/folder" or "owner/name".
            kwargs: those of `DiffusionPipeline.from_pretrained`; components by name replace the saved ones.

        Raises:
            OSError: a file is missing, or the hub did not deliver.
            ValueError: the folder holds another class, a pickle, or files that are damaged or do not fit together.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would load a pickle, which can run code; only safetensors load.")
        folder = _find(pretrained_model_name_or_path, **kwargs)
        class_name = check_folder(folder, skip=kwargs)["_class_name"]
        if class_name not in {base.__name__ for base in cls.__mro__}:
            raise ValueError(f"{folder} holds a {class_name}, not a {cls.__name__}.")
        try:
            pipe = super().from_pretrained(folder, **kwargs)
        except (ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} could not be loaded as a {cls.__name__}: {error}") from error
        if kwargs.get("device_map") is None:
            _check_filled(pipe, folder)
        return pipe

    def adapt_callback(
        self,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Any]] | None,
        tensor_inputs: Sequence[str] = ("latents",),
        tensors: MutableMapping[str, Any] | None = None,
    ) -> Callable[[Step, State], State | None] | None:
        """diffusers' `callback_on_step_end` as the `on_step_end` of the sampling loop.

        Args:
            callback_on_step_end: called as `callback(pipe, index, timestep, kwargs) -> dict`. "latents" in its result
                replaces the state; other names in it are written to `tensors`.
            tensor_inputs: names that `kwargs` shall hold, some of `_callback_tensor_inputs`. A `PipelineCallback` of
                diffusers brings its own list.
            tensors: what the predictor reads at each step, by name; "latents" is the loop's own.

        Returns: None for no callback, so that it costs nothing.

        Raises:
            ValueError: it can not be called, a name is not offered, or it returned something other than a dict.
        """
        if callback_on_step_end is None:
            return None
        if not callable(callback_on_step_end):
            kind = type(callback_on_step_end).__name__
            raise ValueError(f"callback_on_step_end must be callable or None, got {kind}.")
        names = list(getattr(callback_on_step_end, "tensor_inputs", tensor_inputs))
        held: MutableMapping[str, Any] = {} if tensors is None else tensors
        offered = [name for name in self._callback_tensor_inputs if name == "latents" or name in held]
        if unknown := [name for name in names if name not in offered]:
            raise ValueError(f"callback_on_step_end_tensor_inputs has {unknown[0]!r}; {suggest(unknown[0], offered)}")

        def on_step_end(step: Step, state: State) -> State | None:
            inputs = {name: state if name == "latents" else held[name] for name in names}
            returned = callback_on_step_end(self, step.index, step.timestep, inputs)
            if not isinstance(returned, Mapping):
                raise ValueError(f"callback_on_step_end must return a dict, got {type(returned).__name__}.")
            held.update({name: value for name, value in returned.items() if name in offered and name != "latents"})
            return returned.get("latents")

        return on_step_end


def load_pipeline(name_or_folder: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a saved pipeline as the class that it names.

    Args:
        name_or_folder: a built-in checkpoint, a folder or a hub repository "owner/name".
        kwargs: those of `DiffusionPipeline.from_pretrained`, e.g. `dtype=torch.bfloat16`.

    Raises:
        OSError: a file is missing, or the hub did not deliver.
        ValueError: the class is not one of gendiff's, or the files are damaged.
    """
    folder = _find(name_or_folder, **kwargs)
    class_name = read_index(folder)["_class_name"]
    task = task_of(class_name)
    if task is None:
        known = ", ".join(task.class_name for task in TASKS.values())
        raise ValueError(f"{folder} holds a {class_name}, which is not a pipeline of gendiff ({known}).")
    return TASKS[task].load_class().from_pretrained(folder, **kwargs)


def pipeline(
    task: str,
    model: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The pipeline of a task, ready to call.

    Args:
        task: e.g. "counterfactual".
        model: a built-in checkpoint, a folder or a hub repository; None for the task's built-in checkpoint.
        device: where to put it, e.g. "cuda"; None for the CPU.
        dtype: of the weights; None for float32, to which built-in weights stored in half precision are cast.

    Raises:
        ValueError: unknown task, model of another task, unusable device, damaged files.
        OSError: missing files.
    """
    chosen = get_task(task)
    if device is not None:
        _check_device(device)
    folder = _find(chosen.checkpoint if model is None else model)
    pipe = chosen.load_class().from_pretrained(folder, dtype=torch.float32 if dtype is None else dtype)
    return pipe if device is None else pipe.to(device)


def _find(name_or_folder: str | os.PathLike[str], **kwargs: Any) -> str:
    """The folder meant by a folder, a built-in name or a hub repository."""
    if os.path.exists(name_or_folder):
        return os.fspath(name_or_folder)
    return GendiffPipeline.download(name_or_folder, **kwargs)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used on this machine: {reason}") from error


def _check_filled(pipe: DiffusionPipeline, folder: str) -> None:
    """diffusers only logs that a weight is missing from the file and leaves it without storage."""
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            empty = [key for key, tensor in component.state_dict().items() if tensor.is_meta]
            if empty:
                raise ValueError(f"{folder}: the weights of {name!r} lack {len(empty)} tensors, e.g. {empty[0]}.")
