"""Models distilled to a few steps were trained at fixed noise levels; a warp takes them off these."""

from __future__ import annotations

import re
from typing import Any

FEW_STEP_SCHEDULERS = ("FlowMatchLCMScheduler", "LCMScheduler", "SCMScheduler", "TCDScheduler")
_NAMES = re.compile(r"schnell|turbo|lightning|hyper-?sd|lcm|sprint|distill", re.IGNORECASE)


def few_step_scheduler(scheduler: Any) -> str | None:
    """Why a scheduler is one of few-step models, or None."""
    name = type(scheduler).__name__
    if name in FEW_STEP_SCHEDULERS:
        return f"{name} walks few-step distilled models"
    # Draws new noise at each step, as consistency models do; no model of many steps is published with it.
    if getattr(scheduler, "config", {}).get("stochastic_sampling", False):
        return f"{name} with stochastic_sampling=True walks few-step distilled models"
    return None


def few_step_model(pipeline: Any) -> str | None:
    """Why a diffusers pipeline holds a model distilled to few steps, or None if nothing says so.

    Nothing in a file says it for certain. Signs are the scheduler, a U-Net with an input for the guidance scale (LCM),
    a FLUX transformer without one (schnell), and the name the pipeline was loaded by.

    Args:
        pipeline: any diffusers pipeline.
    """
    if reason := few_step_scheduler(getattr(pipeline, "scheduler", None)):
        return reason
    unet: Any = getattr(pipeline, "unet", None)
    transformer: Any = getattr(pipeline, "transformer", None)
    if unet is not None and unet.config.get("time_cond_proj_dim") is not None:
        return "a U-Net that reads the guidance scale (time_cond_proj_dim) is distilled"
    if type(transformer).__name__ == "FluxTransformer2DModel" and not transformer.config.get("guidance_embeds"):
        return "a FLUX transformer without guidance_embeds is the few-step one"
    if found := _NAMES.search(str(getattr(pipeline, "name_or_path", None) or "")):
        return f"the pipeline's name says {found.group()!r}"
    return None
