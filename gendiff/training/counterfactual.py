"""How a counterfactual pipeline is built, trained, finished and previewed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gendiff.causal.labels import embed, embed_all, unembed
from gendiff.models.causal_encoder import CausalEncoder
from gendiff.models.causal_mechanisms import CausalMechanisms
from gendiff.models.latent_projection import LatentProjection
from gendiff.models.patch_unet import PatchUNet2DModel
from gendiff.pipelines.counterfactual import CounterfactualPipeline

from .diffusion import diffusion_loss
from .methods import Method
from .recipe import check_arguments

# Images whose noise is measured at the end of training, and how many are encoded at once.
NOISE_SAMPLES, NOISE_BATCH = 5000, 250


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    drop_unlabelled_condition: bool = False,
) -> dict[str, Tensor]:
    """Terms of the training loss, each a mean so that their balance does not move with the latent width.

    - diffusion: squared error of the network's prediction at uniform timesteps.
    - noise_kl, style_kl: KL(N(mean, var) || N(0, I)) of the causal noise and the style.
    - align: squared distance of the factors to their labels, where labelled.
    - mechanism: squared error of each mechanism from label to label, no image involved; it is what makes an
      intervention reach its descendants.

    Also returned, to be logged: align_error (in units of scale) and slope/NAME, the regression slope of each
    continuous factor on its label, which is 1 when factors have the labels' units.

    Args:
        models: the pipeline's components by name.
        batch: "image" (B, C, S, S) in [-1, 1], "labels" (B, n) in raw units, NaN = not labelled, and optionally
            "intervened" (B, n) bool, values that an experiment set and no mechanism explains.
        generator: CPU generator of every draw of this step.
        drop_unlabelled_condition: train samples without any label unconditionally, as the authors do.

    Source: Komanduri et al. 2024 (CausalDiffAE), section 4, with normalised weights and the mechanism term added.
    """
    mechanisms = models["mechanisms"]
    image, labels = batch["image"], batch["labels"].to(batch["image"].dtype)
    posterior = models["encoder"](image)
    z = mechanisms(_draw(posterior.mean, posterior.logvar, generator))
    style = _draw(posterior.style_mean, posterior.style_logvar, generator)

    keep = models["projection"].draw_keep(len(image), generator).to(image.device)
    if drop_unlabelled_condition:
        keep = keep & ~labels.isnan().all(dim=1, keepdim=True)
    condition = models["projection"](z, style, keep)

    targets = embed_all(mechanisms.graph, labels)
    factors = mechanisms(posterior.mean)
    return {
        "diffusion": diffusion_loss(models["unet"], models["scheduler"], image, condition, generator),
        "noise_kl": _kl(posterior.mean, posterior.logvar),
        "style_kl": _kl(posterior.style_mean, posterior.style_logvar),
        "align": _labelled_error(factors, targets, torch.square),
        "mechanism": _mechanism_loss(mechanisms, labels, batch.get("intervened")),
        **_alignment_report(mechanisms, factors.detach(), labels),
    }


def _draw(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return mean + torch.exp(0.5 * logvar) * noise


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    if mean.numel() == 0:
        return mean.sum()
    return 0.5 * (mean**2 + logvar.exp() - logvar - 1).mean()


def _labelled_error(prediction: Tensor, target: Tensor, penalty: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean penalty over the entries whose target is not NaN; 0, with zero gradient, where there are none."""
    known = ~target.isnan()
    # The target is filled before it meets the prediction: the gradient of a masked NaN would still be NaN.
    errors = penalty(prediction - target.nan_to_num(0.0))
    return torch.where(known, errors, 0.0).sum() / known.sum().clamp(min=1)


def _mechanism_loss(mechanisms: CausalMechanisms, labels: Tensor, intervened: Tensor | None) -> Tensor:
    graph = mechanisms.graph
    children = [name for name in graph.topological_order if graph.parents(name)]
    if not children:
        return labels.new_zeros(())
    blocks = {variable.name: embed(variable, labels[:, i]) for i, variable in enumerate(graph.variables)}
    filled = {name: block.nan_to_num(0.0) for name, block in blocks.items()}
    total = labels.new_zeros(())
    for name in children:
        prediction = torch.as_tensor(mechanisms.effect(name, filled)[0])
        parents_known = torch.stack([~blocks[parent].isnan().any(dim=1) for parent in graph.parents(name)]).all(dim=0)
        explained = parents_known if intervened is None else parents_known & ~intervened[:, graph.index(name)]
        target = torch.where(explained[:, None], blocks[name], torch.nan)
        total = total + _labelled_error(prediction, target, torch.square)
    return total


@torch.no_grad()
def _alignment_report(mechanisms: CausalMechanisms, factors: Tensor, labels: Tensor) -> dict[str, Tensor]:
    graph = mechanisms.graph
    report = {"align_error": _labelled_error(factors, embed_all(graph, labels), torch.abs)}
    for i, variable in enumerate(graph.variables):
        known = ~labels[:, i].isnan()
        if variable.kind == "continuous" and known.sum() > 1:
            label = labels[known, i]
            read = unembed(variable, factors[known, graph.slices[variable.name]])
            centred = label - label.mean()
            report[f"slope/{variable.name}"] = (centred * read).sum() / (centred**2).sum().clamp(min=1e-12)
    return report


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> CounterfactualPipeline:
    """Untrained pipeline for `dataset`; sizes that the data decides need not be in the recipe.

    Args:
        models: keyword arguments by component: encoder, mechanisms, projection, unet, scheduler; each may be left out.
        dataset: has `graph`, `images` (N, C, S, S) and `labels` (N, n).

    Raises:
        ValueError: an unknown component or argument, or a variable that no training sample has a label for.
    """
    graph = dataset.graph
    unlabelled = [name for i, name in enumerate(graph.names) if dataset.labels[:, i].isnan().all()]
    if unlabelled:
        raise ValueError(f"the training data has no label at all for {', '.join(unlabelled)}.")
    channels, size = dataset.images.shape[1], dataset.images.shape[2]
    given = {name: dict(arguments) for name, arguments in models.items()}
    style_dim = given.get("encoder", {}).get("style_dim", 0)
    widths = given.get("unet", {}).get("block_out_channels", (48, 64, 96))
    known_sizes = {
        "encoder": {"sample_size": size, "in_channels": channels, "latent_dim": graph.dim},
        "mechanisms": {"graph": graph.to_dict()},
        "projection": {
            "block_dims": [variable.dim for variable in graph.variables],
            "embed_dim": 4 * widths[0],
            "style_dim": style_dim,
        },
        "unet": {"sample_size": size, "in_channels": channels},
        "scheduler": {
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
    }
    classes = {
        "encoder": CausalEncoder,
        "mechanisms": CausalMechanisms,
        "projection": LatentProjection,
        "unet": PatchUNet2DModel,
        "scheduler": DDIMScheduler,
    }
    check_arguments("models", given, classes)
    components = {}
    for name, component in classes.items():
        arguments = known_sizes[name] | given.get(name, {})
        check_arguments(f"models.{name}", arguments, component)
        components[name] = component(**arguments)
    return CounterfactualPipeline(**components)


@torch.no_grad()
def finish(pipeline: CounterfactualPipeline, dataset: Any) -> None:
    """Store the noise as observed data has it, so that `pipeline.sample` can draw from it."""
    images = dataset.images
    if hasattr(dataset, "intervened"):
        images = images[~dataset.intervened.any(dim=1)]
    images = images[:NOISE_SAMPLES]
    noise = [
        pipeline.encoder(chunk.to(pipeline.device, torch.float32) / 127.5 - 1).mean
        for chunk in images.split(NOISE_BATCH)
    ]
    pipeline.mechanisms.store_noise(torch.cat(noise))


@torch.no_grad()
def preview(pipeline: CounterfactualPipeline, dataset: Any, generator: torch.Generator, columns: int = 8) -> Tensor:
    """Picture (C, H, W) in [0, 1]: factual images, then for each variable one row under a drawn intervention."""
    images = dataset.images[:columns].float() / 255
    state = pipeline.abduct(images, num_inference_steps=10)
    rows = [images]
    for variable in pipeline.graph.variables:
        if variable.kind == "categorical":
            value = int(torch.randint(variable.dim, (1,), generator=generator))
        elif variable.low is None or variable.high is None:
            value = variable.loc
        else:
            value = variable.low + (variable.high - variable.low) * float(torch.rand(1, generator=generator))
        rows.append(pipeline.predict(state, {variable.name: value}, output_type="pt").images.cpu())
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)


METHOD = Method(build=build, objective=objective, finish=finish, preview=preview)
