"""Diffusion methods as choices of a scheduler, a predictor and a cache, on one sampling loop.

Names are imported when they are first used, so that `import gendiff` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gendiff.causal.graph import CausalGraph, GraphError, Variable
    from gendiff.causal.intervention import InterventionError
    from gendiff.data import load_dataset
    from gendiff.pipelines.base import GendiffPipeline, load_pipeline, pipeline
    from gendiff.pipelines.causal_video import CausalVideoPipeline
    from gendiff.pipelines.counterfactual import CounterfactualPipeline
    from gendiff.pipelines.image_generation import ImageGenerationPipeline
    from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
    from gendiff.pipelines.next_frequency import NextFrequencyPipeline
    from gendiff.pipelines.recap_models import disable_recap, enable_recap
    from gendiff.samplers.guidance import guided
    from gendiff.samplers.inversion import EDICTInverseScheduler, EDICTScheduler, FixedPointInverseScheduler
    from gendiff.samplers.loop import Step, sample
    from gendiff.samplers.masked import MaskedScheduler
    from gendiff.samplers.next_frequency import NextFrequencyScheduler
    from gendiff.samplers.recap import ReCAPConfig

    __version__: str

__all__ = [
    "CausalGraph",
    "CausalVideoPipeline",
    "CounterfactualPipeline",
    "EDICTInverseScheduler",
    "EDICTScheduler",
    "FixedPointInverseScheduler",
    "GendiffPipeline",
    "GraphError",
    "ImageGenerationPipeline",
    "InterventionError",
    "MaskedGenerationPipeline",
    "MaskedScheduler",
    "NextFrequencyPipeline",
    "NextFrequencyScheduler",
    "ReCAPConfig",
    "Step",
    "Variable",
    "__version__",
    "disable_recap",
    "enable_recap",
    "guided",
    "load_dataset",
    "load_pipeline",
    "pipeline",
    "sample",
]

_MODULES = {
    "gendiff.causal.graph": ("CausalGraph", "GraphError", "Variable"),
    "gendiff.causal.intervention": ("InterventionError",),
    "gendiff.data": ("load_dataset",),
    "gendiff.pipelines.base": ("GendiffPipeline", "load_pipeline", "pipeline"),
    "gendiff.pipelines.causal_video": ("CausalVideoPipeline",),
    "gendiff.pipelines.counterfactual": ("CounterfactualPipeline",),
    "gendiff.pipelines.image_generation": ("ImageGenerationPipeline",),
    "gendiff.pipelines.masked_generation": ("MaskedGenerationPipeline",),
    "gendiff.pipelines.next_frequency": ("NextFrequencyPipeline",),
    "gendiff.pipelines.recap_models": ("disable_recap", "enable_recap"),
    "gendiff.samplers.guidance": ("guided",),
    "gendiff.samplers.inversion": ("EDICTInverseScheduler", "EDICTScheduler", "FixedPointInverseScheduler"),
    "gendiff.samplers.loop": ("Step", "sample"),
    "gendiff.samplers.masked": ("MaskedScheduler",),
    "gendiff.samplers.next_frequency": ("NextFrequencyScheduler",),
    "gendiff.samplers.recap": ("ReCAPConfig",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gendiff' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gendiff")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0.0.0"
