"""Diffusion methods as choices of a scheduler, a predictor and a cache, on one sampling loop.

Names are imported when they are first used, so that `import gendiff` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gendiff.causal.graph import CausalGraph, GraphError, Variable
    from gendiff.causal.intervention import InterventionError
    from gendiff.causal.scene_grammar import TemplateGrammar
    from gendiff.causal.scene_graph import CausalSceneGraph
    from gendiff.causal.scene_lexicon import GrammarParser
    from gendiff.data import load_dataset
    from gendiff.data.pap import PAPDataset
    from gendiff.metrics.pap import pap_score
    from gendiff.metrics.winoground import winoground_score
    from gendiff.models.lina_predictor import LINAPredictor
    from gendiff.oracles.mode_world import ModeWorld
    from gendiff.pipelines.base import GendiffPipeline, load_pipeline, pipeline
    from gendiff.pipelines.causal_video import CausalVideoPipeline
    from gendiff.pipelines.counterfactual import CounterfactualPipeline
    from gendiff.pipelines.factor_directions import FactorDirections
    from gendiff.pipelines.image_generation import ImageGenerationPipeline
    from gendiff.pipelines.lina import LINAPipeline
    from gendiff.pipelines.lina_attach import attach
    from gendiff.pipelines.lina_conditions import Conditions, prompt_conditions
    from gendiff.pipelines.lina_steered import SteeredPipeline
    from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
    from gendiff.pipelines.next_frequency import NextFrequencyPipeline
    from gendiff.pipelines.recap_models import disable_recap, enable_recap
    from gendiff.samplers.contrast import CausalContrast, contrasted
    from gendiff.samplers.energy import EnergySteering, steered
    from gendiff.samplers.guidance import guided
    from gendiff.samplers.intervention import Intervention
    from gendiff.samplers.inversion import EDICTInverseScheduler, EDICTScheduler, FixedPointInverseScheduler
    from gendiff.samplers.lina_guidance import LINAGuidance
    from gendiff.samplers.loop import Step, sample
    from gendiff.samplers.masked import MaskedScheduler
    from gendiff.samplers.next_frequency import NextFrequencyScheduler
    from gendiff.samplers.recap import ReCAPConfig
    from gendiff.samplers.warped import warp_scheduler
    from gendiff.samplers.warped_ddim import WarpedDDIMScheduler
    from gendiff.samplers.warps import WarpSpec
    from gendiff.training.lina_regress import train_predictor
    from gendiff.training.lina_search import search_interventions

    __version__: str

__all__ = [
    "CausalContrast",
    "CausalGraph",
    "CausalSceneGraph",
    "CausalVideoPipeline",
    "Conditions",
    "CounterfactualPipeline",
    "EDICTInverseScheduler",
    "EDICTScheduler",
    "EnergySteering",
    "FactorDirections",
    "FixedPointInverseScheduler",
    "GendiffPipeline",
    "GrammarParser",
    "GraphError",
    "ImageGenerationPipeline",
    "Intervention",
    "InterventionError",
    "LINAGuidance",
    "LINAPipeline",
    "LINAPredictor",
    "MaskedGenerationPipeline",
    "MaskedScheduler",
    "ModeWorld",
    "NextFrequencyPipeline",
    "NextFrequencyScheduler",
    "PAPDataset",
    "ReCAPConfig",
    "SteeredPipeline",
    "Step",
    "TemplateGrammar",
    "Variable",
    "WarpSpec",
    "WarpedDDIMScheduler",
    "__version__",
    "attach",
    "contrasted",
    "disable_recap",
    "enable_recap",
    "guided",
    "load_dataset",
    "load_pipeline",
    "pap_score",
    "pipeline",
    "prompt_conditions",
    "sample",
    "search_interventions",
    "steered",
    "train_predictor",
    "warp_scheduler",
    "winoground_score",
]

_MODULES = {
    "gendiff.causal.graph": ("CausalGraph", "GraphError", "Variable"),
    "gendiff.causal.intervention": ("InterventionError",),
    "gendiff.causal.scene_grammar": ("TemplateGrammar",),
    "gendiff.causal.scene_graph": ("CausalSceneGraph",),
    "gendiff.causal.scene_lexicon": ("GrammarParser",),
    "gendiff.data": ("load_dataset",),
    "gendiff.data.pap": ("PAPDataset",),
    "gendiff.metrics.pap": ("pap_score",),
    "gendiff.metrics.winoground": ("winoground_score",),
    "gendiff.models.lina_predictor": ("LINAPredictor",),
    "gendiff.oracles.mode_world": ("ModeWorld",),
    "gendiff.pipelines.base": ("GendiffPipeline", "load_pipeline", "pipeline"),
    "gendiff.pipelines.causal_video": ("CausalVideoPipeline",),
    "gendiff.pipelines.counterfactual": ("CounterfactualPipeline",),
    "gendiff.pipelines.factor_directions": ("FactorDirections",),
    "gendiff.pipelines.image_generation": ("ImageGenerationPipeline",),
    "gendiff.pipelines.lina": ("LINAPipeline",),
    "gendiff.pipelines.lina_attach": ("attach",),
    "gendiff.pipelines.lina_conditions": ("Conditions", "prompt_conditions"),
    "gendiff.pipelines.lina_steered": ("SteeredPipeline",),
    "gendiff.pipelines.masked_generation": ("MaskedGenerationPipeline",),
    "gendiff.pipelines.next_frequency": ("NextFrequencyPipeline",),
    "gendiff.pipelines.recap_models": ("disable_recap", "enable_recap"),
    "gendiff.samplers.contrast": ("CausalContrast", "contrasted"),
    "gendiff.samplers.energy": ("EnergySteering", "steered"),
    "gendiff.samplers.guidance": ("guided",),
    "gendiff.samplers.intervention": ("Intervention",),
    "gendiff.samplers.inversion": ("EDICTInverseScheduler", "EDICTScheduler", "FixedPointInverseScheduler"),
    "gendiff.samplers.lina_guidance": ("LINAGuidance",),
    "gendiff.samplers.loop": ("Step", "sample"),
    "gendiff.samplers.masked": ("MaskedScheduler",),
    "gendiff.samplers.next_frequency": ("NextFrequencyScheduler",),
    "gendiff.samplers.recap": ("ReCAPConfig",),
    "gendiff.samplers.warped": ("warp_scheduler",),
    "gendiff.samplers.warped_ddim": ("WarpedDDIMScheduler",),
    "gendiff.samplers.warps": ("WarpSpec",),
    "gendiff.training.lina_regress": ("train_predictor",),
    "gendiff.training.lina_search": ("search_interventions",),
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
