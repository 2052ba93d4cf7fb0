"""Where a figure comes from: command, versions, machine, commit and the very weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from calibration import simd
from noise import load

import gendiff
from gendiff.pipelines.base import GendiffPipeline

PACKAGES = ("torch", "diffusers", "accelerate", "numpy")


def command_line() -> str:
    """The command that runs now, as one would type it from the root of the repository."""
    script = Path(sys.argv[0])
    return shlex.join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def origin() -> dict[str, Any]:
    """How every result file begins: when, by which version and commit, and by which command."""
    return {"created": now(), "gendiff": gendiff.__version__, "git": git_state(), "command": command_line()}


def environment(device: str, dtype: str, compile_mode: str | None = None) -> dict[str, Any]:
    """What the figures may depend on besides the code; `load_after` is the script's to add when it ends."""
    gpu = torch.cuda.get_device_name(torch.device(device)) if torch.device(device).type == "cuda" else None
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "os": platform.platform(),
        "cpu_model": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": simd(),
        "ram_gib": _ram_gib(),
        "device": device,
        "gpu": gpu,
        "driver": _driver() if gpu else None,
        "dtype": dtype,
        "tf32": torch.get_float32_matmul_precision() != "highest",
        "compile": compile_mode,
        "sdpa_backend": _sdpa_backends(),
        "load_before": load(),
        "load_after": None,
    }


def git_state() -> dict[str, Any]:
    """Commit of the working tree and whether it has changes; None where git does not know."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def model_folder(name_or_folder: str) -> Path:
    """The folder of a pipeline given by path, built-in name or hub repository.

    Raises:
        OSError, ValueError: there is none.
    """
    path = Path(name_or_folder)
    return path if path.is_dir() else Path(GendiffPipeline.download(name_or_folder))


def checkpoint_sha256(folder: Path) -> str:
    """One hash over names and bytes of all configs and weights of a saved pipeline; its card does not count."""
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        content.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _ram_gib() -> float | None:
    if not hasattr(os, "sysconf") or not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _sdpa_backends() -> str:
    """Kernels that attention may choose from; which one it takes depends on device, dtype and shape."""
    backends = torch.backends.cuda
    enabled = {
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled(),
        "cudnn": backends.cudnn_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
    }
    return "+".join(name for name, on in enabled.items() if on) or "none"


def _driver() -> str | None:
    lines = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.splitlines()[0] if lines else None


def _git(*arguments: str) -> str | None:
    return _output_of("git", *arguments)


def _output_of(*command: str) -> str | None:
    """What a program prints, None if it is not there or fails; run in this folder."""
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
