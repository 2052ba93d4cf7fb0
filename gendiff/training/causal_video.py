"""How a causal video model is built, trained and previewed: as one noisy chunk after a clean prefix, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.models.causal_video import CausalVideoTransformer3DModel
from gendiff.nn.frame_plan import history_plan, teacher_forcing_plan
from gendiff.pipelines.causal_video import CausalVideoPipeline

from .diffusion import noised
from .methods import Method
from .recipe import check_arguments

SCHEDULERS = {kind.__name__: kind for kind in (FlowMatchEulerDiscreteScheduler, DDPMScheduler, DDIMScheduler)}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    forcing: str = "teacher",
    label_dropout: float = 0.1,
    context_noise: float = 0.1,
    timesteps: str = "logit-normal",
) -> dict[str, Tensor]:
    """Mean squared error on noisy frames that follow clean ones.

    Args:
        models: "transformer" and "scheduler".
        batch: "video" (B, F, C, H, W) in [-1, 1]; for a model of classes "label" (B,) or (B, 1); for one of text its
            embeddings "text" (B, L, c), and "text_mask" (B, L), True or 1 for tokens that count, where not all do.
        generator: CPU generator of every draw of this step.
        forcing: "teacher": every chunk of the clip is a target, after the clean frames before it, in one forward over a
            clean and a noisy copy; "prefix": one chunk is, after a prefix whose length is drawn (Ca2-VDM, section 3.2).
        label_dropout: share of clips trained without their class and text, so that guidance has its contrast. No text
            is zeros in place of the embeddings.
        context_noise: clean frames get noise of a standard deviation drawn from 0 up to this, while their timestep
            stays 0: in a long video they are generated ones.
        timesteps: density of noise levels, "logit-normal" (Esser et al. 2024, for flow matching) or "uniform", which
            DDPM's schedules are made for.

    Raises:
        ValueError: an unknown choice, a number out of range, clips that are too short, or no condition where the model
            has one.
    """
    if forcing not in _LOSSES:
        raise ValueError(f"objective.forcing must be one of {', '.join(_LOSSES)}, got {forcing!r}.")
    if timesteps not in ("logit-normal", "uniform"):
        raise ValueError(f"objective.timesteps must be logit-normal or uniform, got {timesteps!r}.")
    for name, value in (("label_dropout", label_dropout), ("context_noise", context_noise)):
        if not 0 <= value <= 1:
            raise ValueError(f"objective.{name} must be from 0 to 1, got {value!r}.")
    video = batch["video"]
    condition = _condition(batch, models["transformer"].config, label_dropout, generator)

    # The scheduler's own shift (Esser et al. 2024, equation 23): training dwells where sampling does. Where the past
    # all but decides the future, that is close to pure noise; from there on the picture itself shows what it will be.
    shift = models["scheduler"].config.get("shift", 1.0)

    def draw_levels(*shape: int) -> Tensor:
        """Noise levels in (0, 1)."""
        if timesteps == "uniform":
            levels = torch.rand(shape, generator=generator)
        else:
            levels = torch.randn(shape, generator=generator).sigmoid()
        return shift * levels / (1 + (shift - 1) * levels)

    loss = _LOSSES[forcing](models, video, condition, draw_levels, context_noise, generator)
    return {"diffusion": loss}


def teacher_forcing_loss(
    models: Mapping[str, Any],
    video: Tensor,
    condition: Mapping[str, Tensor],
    draw_levels: Callable[..., Tensor],
    context_noise: float,
    generator: torch.Generator,
) -> Tensor:
    """Loss of all chunks of the clips in one forward over [clean copy | noisy copy].

    Args:
        models: "transformer" and "scheduler".
        video: (B, F, C, H, W) in [-1, 1], F = 1 + n l, so that the first chunk is one frame from nothing.
        condition: further arguments of the network: class and text of each clip, where it has them.
        draw_levels: gives noise levels in (0, 1) of a shape; each chunk has its own.
        context_noise: see `objective`.
        generator: CPU generator.
    """
    network, scheduler = models["transformer"], models["scheduler"]
    config, (batch, frames) = network.config, video.shape[:2]
    starts = [0, *range(1, frames, config["chunk_size"])]
    if (frames - 1) % config["chunk_size"]:
        raise ValueError(f"num_frames must be 1 + a multiple of chunk_size {config['chunk_size']}, got {frames}.")
    sizes = torch.diff(torch.tensor([*starts, frames]))
    levels = draw_levels(batch, len(starts)).repeat_interleave(sizes, dim=1)
    noise = torch.randn(video.shape, generator=generator).to(video)
    noisy, times, target = noised(scheduler, video, noise, levels.to(video.device))
    clean = _with_context_noise(video, context_noise, generator)
    plan = teacher_forcing_plan(starts, frames, config["attention_mode"], config["prefix_references"])
    prediction = network(
        torch.cat([clean, noisy], dim=1).transpose(1, 2),
        torch.cat([torch.zeros_like(times), times], dim=1),
        **condition,
        frame_index=torch.arange(frames, device=video.device).repeat(2) + _cyclic_offset(network, frames, generator),
        plan=plan.to(video.device),
        return_dict=False,
    )[0]
    return torch.nn.functional.mse_loss(prediction[:, :, frames:].transpose(1, 2).float(), target)


def prefix_loss(
    models: Mapping[str, Any],
    video: Tensor,
    condition: Mapping[str, Tensor],
    draw_levels: Callable[..., Tensor],
    context_noise: float,
    generator: torch.Generator,
) -> Tensor:
    """Loss of one noisy chunk after a clean prefix, whose length all clips of the batch share.

    The length is drawn from {1, 1 + l, ..., W}, or is 0 with the model's `p_empty`; then the chunk is one frame. The
    target is the chunk alone: what the network says of the prefix has no gradient.

    Arguments as of `teacher_forcing_loss`; the clips have at least W + l frames.
    """
    network, scheduler = models["transformer"], models["scheduler"]
    config, batch = network.config, len(video)
    needed = config["context_frames"] + config["chunk_size"]
    if video.shape[1] < needed:
        raise ValueError(f"num_frames must be at least context_frames + chunk_size = {needed}, got {video.shape[1]}.")
    prefix, length = draw_prefix(config, generator)
    frames = prefix + length
    video = video[:, :frames]
    target_frames = video[:, prefix:]
    levels = draw_levels(batch, 1).expand(batch, length).to(video.device)
    noise = torch.randn(target_frames.shape, generator=generator).to(video)
    noisy, times, target = noised(scheduler, target_frames, noise, levels)
    clean = _with_context_noise(video[:, :prefix], context_noise, generator)
    # Clean frames in the chunks that generation writes them in: in block-causal attention the cache depends on them.
    starts = [0, *range(1, frames, config["chunk_size"])]
    mode, references = config["attention_mode"], config["prefix_references"]
    plan = history_plan(frames, starts, frames, mode, references, noisy_from=prefix)
    prediction = network(
        torch.cat([clean, noisy], dim=1).transpose(1, 2),
        torch.cat([times.new_zeros(batch, prefix), times], dim=1),
        **condition,
        num_prefix_frames=prefix,
        frame_index=torch.arange(frames, device=video.device) + _cyclic_offset(network, frames, generator),
        plan=plan.to(video.device),
        return_dict=False,
    )[0]
    return torch.nn.functional.mse_loss(prediction[:, :, prefix:].transpose(1, 2).float(), target)


def draw_prefix(config: Mapping[str, Any], generator: torch.Generator) -> tuple[int, int]:
    """Length of the clean prefix and of the noisy chunk behind it, as a model of `config` meets them."""
    if float(torch.rand((), generator=generator)) < config["p_empty"]:
        return 0, 1
    lengths = range(1, config["context_frames"] + 1, config["chunk_size"])
    return lengths[int(torch.randint(len(lengths), (), generator=generator))], config["chunk_size"]


_LOSSES = {"teacher": teacher_forcing_loss, "prefix": prefix_loss}


def _condition(
    batch: Mapping[str, Tensor], config: Mapping[str, Any], dropout: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """What the network is told of each clip, by argument; a share of the clips has its null class and zeros as text."""
    num_classes, width = config["num_classes"], config["cross_attention_dim"]
    if not num_classes and not width:
        return {}
    for name, wanted in (("label", num_classes), ("text", width)):
        if wanted and name not in batch:
            raise ValueError(f"items must have {name!r}, which the transformer is conditioned on; got {sorted(batch)}.")
    clips, told = len(batch["video"]), {}
    hidden = torch.rand(clips, generator=generator) < dropout
    if num_classes:
        labels = batch["label"].reshape(clips, -1)
        if labels.shape[1] != 1:
            raise ValueError(f"a model of classes needs one label for each video, got {labels.shape[1]}.")
        told["class_labels"] = labels[:, 0].masked_fill(hidden.to(labels.device), num_classes)
    if width:
        text = batch["text"]
        told["encoder_hidden_states"] = text.masked_fill(hidden.to(text.device)[:, None, None], 0)
        if "text_mask" in batch:
            told["encoder_attention_mask"] = batch["text_mask"]
    return told


def _with_context_noise(clean: Tensor, most: float, generator: torch.Generator) -> Tensor:
    deviation = torch.rand((len(clean), 1, 1, 1, 1), generator=generator) * most
    noise = torch.randn(clean.shape, generator=generator) * deviation
    return clean + noise.to(clean)


def _cyclic_offset(network: Any, frames: int, generator: torch.Generator) -> int:
    """Where in the cycle a clip begins: anywhere once it is as long as the cycle, else at 0, as in generation."""
    config = network.config
    period = config["context_frames"] + config["chunk_size"]
    if config["pos"] != "cyclic" or frames < period:
        return 0
    return int(torch.randint(period, (), generator=generator))


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> CausalVideoPipeline:
    """Untrained pipeline for `dataset`; sizes that the data decides need not be in the recipe.

    Args:
        models: keyword arguments of `CausalVideoTransformer3DModel` and of the scheduler, whose `class` is one of
            `SCHEDULERS`: FlowMatchEulerDiscreteScheduler if left out; {class: DDPMScheduler} has the linear noise
            schedule of the Ca2-VDM paper.
        dataset: has `frame_shape` (C, H, W), and `classes`, used where `transformer.num_classes` is not 0.

    Raises:
        ValueError: an unknown component, argument, scheduler or prediction type.
    """
    channels, height, width = dataset.frame_shape
    size = height if height == width else (height, width)
    arguments = {name: dict(models.get(name, {})) for name in ("transformer", "scheduler")}
    kind = arguments["scheduler"].pop("class", FlowMatchEulerDiscreteScheduler.__name__)
    if kind not in SCHEDULERS:
        raise ValueError(f"models.scheduler.class must be one of {', '.join(SCHEDULERS)}, got {kind!r}.")
    prediction = arguments["scheduler"].get("prediction_type", PREDICTIONS[0])
    if prediction not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise ValueError(f"models.scheduler.prediction_type must be one of {known}, got {prediction!r}.")
    arguments["transformer"] = {"sample_size": size, "in_channels": channels} | arguments["transformer"]
    classes = {"transformer": CausalVideoTransformer3DModel, "scheduler": SCHEDULERS[kind]}
    check_arguments("models", models, classes)
    components = {}
    for name, component in classes.items():
        check_arguments(f"models.{name}", arguments[name], component)
        components[name] = component(**arguments[name])
    names = dataset.classes if components["transformer"].config["num_classes"] else ()
    return CausalVideoPipeline(**components, class_names=names)


def preview(pipeline: CausalVideoPipeline, dataset: Any, generator: torch.Generator, rows: int = 4) -> Tensor:
    """Picture (C, H, W) in [0, 1]: each row a video that goes on from the first frames of a training clip."""
    config = pipeline.transformer.config
    items = [dataset[index] for index in range(min(rows, len(dataset)))]
    given = torch.stack([item["video"][: 1 + config["chunk_size"]] for item in items]) / 2 + 0.5
    told: dict[str, Any] = {}
    if config["num_classes"]:
        told["class_labels"] = [int(item["label"]) for item in items]
    if config["cross_attention_dim"]:
        told["prompt_embeds"] = torch.stack([item["text"] for item in items])
        if "text_mask" in items[0]:
            told["prompt_attention_mask"] = torch.stack([item["text_mask"] for item in items])
    if config["attention_mode"] == "full":
        told["use_cache"] = "window"
    pipeline.set_progress_bar_config(disable=True)
    session = pipeline.start(video=given, num_inference_steps=10, generator=generator, **told)
    frames = torch.cat([given, session.generate(20).frames.cpu()], dim=1)
    return torch.cat([torch.cat(list(video), dim=2) for video in frames], dim=1)


METHOD = Method(build=build, objective=objective, preview=preview)
