"""How a plain diffusion model is built, trained and previewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from gendiff.pipelines.image_generation import ImageGenerationPipeline, ImageGenerationPipelineOutput

from .diffusion import diffusion_loss
from .methods import Method
from .recipe import check_arguments


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    label_dropout: float = 0.1,
) -> dict[str, Tensor]:
    """The diffusion loss, with the class hidden from a share of the images so that guidance has its contrast.

    Args:
        models: "unet" and "scheduler".
        batch: "image" (B, C, S, S) in [-1, 1] and "label" (B,).
        generator: CPU generator of every draw of this step.
        label_dropout: share of images trained without their class.
    """
    image, labels = batch["image"], batch["label"]
    hidden = torch.rand(len(image), generator=generator).to(image.device) < label_dropout
    # Through the accelerator's wrapper or bare, the network's own config says how many classes there are.
    none = models["unet"].config["num_class_embeds"] - 1
    condition = labels.to(image.device).masked_fill(hidden, none)
    return {"diffusion": diffusion_loss(models["unet"], models["scheduler"], image, condition, generator)}


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> ImageGenerationPipeline:
    """Untrained pipeline for `dataset`; sizes that the data decides need not be in the recipe.

    Args:
        models: keyword arguments of `UNet2DModel` and `DDIMScheduler` by component.
        dataset: has `images` (N, C, S, S) and `classes`, their names.

    Raises:
        ValueError: an unknown component or argument.
    """
    channels, size = dataset.images.shape[1], dataset.images.shape[2]
    known = {
        "unet": {
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "num_class_embeds": len(dataset.classes) + 1,
            "resnet_time_scale_shift": "scale_shift",
        },
        "scheduler": {
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
    }
    classes = {"unet": UNet2DModel, "scheduler": DDIMScheduler}
    check_arguments("models", models, classes)
    components = {}
    for name, component in classes.items():
        arguments = known[name] | dict(models.get(name, {}))
        check_arguments(f"models.{name}", arguments, component)
        components[name] = component(**arguments)
    return ImageGenerationPipeline(**components, class_names=dataset.classes)


def preview(pipeline: ImageGenerationPipeline, dataset: Any, generator: torch.Generator, rows: int = 6) -> Tensor:
    """Picture (C, H, W) in [0, 1]: one column for each class."""
    count = len(pipeline.class_names)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(list(range(count)) * rows, num_inference_steps=20, generator=generator, output_type="pt")
    assert isinstance(output, ImageGenerationPipelineOutput)
    images = output.images.cpu()
    return torch.cat([torch.cat(list(row), dim=2) for row in images.split(count)], dim=1)


METHOD = Method(build=build, objective=objective, preview=preview)
