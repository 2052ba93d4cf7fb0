"""Pictures of prompts, plain and steered from the same noise, from loaded model to finished files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.lina_output import LINAPipelineOutput
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.intervention import Intervention

from .lina_graph import contrasted_nodes, graph_file
from .lina_pairs import pairs
from .lina_verdicts import Verdict, mean_scores, verdicts
from .lina_words import intervention_words
from .pictures import png_bytes, to_pil
from .run_record import run_record


@dataclass(frozen=True)
class Order:
    """What to draw.

    Attributes:
        model: built-in checkpoint, folder or hub repository.
        prompts: one or more sentences of the model's grammar.
        num_images: images of each prompt.
        intervention: "auto", "off" or one for all prompts.
        steps: of the walk.
        guidance_scale: None for the model's own.
        projection: of the contrast; None for the model's own.
        seed: image i is drawn from seed + i.
        device: e.g. "cuda"; None for the CPU.
    """

    model: str
    prompts: Sequence[str]
    num_images: int = 4
    intervention: str | Intervention = "auto"
    steps: int = 10
    guidance_scale: float | None = None
    projection: str | None = None
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"--num-images must be at least 1, got {self.num_images}.")
        if not self.prompts:
            raise ValueError("--prompt must be given at least once.")


def run(order: Order, arguments: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """Draw what `order` says.

    Args:
        arguments: as typed, recorded in run.json.

    Returns: content by file name, and a summary for the terminal.

    Raises:
        ValueError: anything about the order that does not fit the model; before any sampling.
        OSError: the model cannot be read.
    """
    for part in (diffusers_logging, transformers_logging):
        part.disable_progress_bar()  # of loading; sampling has its own
    contrast = None if order.projection is None else CausalContrast(projection=order.projection)
    pipe = pipeline("lina", order.model, device=order.device)
    if contrast is not None:
        contrast = replace(contrast, mask=pipe.grammar.contrast_mask(*pipe.sample_shape[1:]))
    # As the grammar writes them: tokenizer and verifier know sentences letter by letter, people type as they like.
    order = replace(order, prompts=[pipe.grammar.fill(pipe.grammar.values(text)) for text in order.prompts])
    prompts = list(order.prompts)
    # The steered run first: it is the one whose order can be wrong.
    steered = _draw(pipe, order, order.intervention, contrast)
    base = steered if order.intervention == "off" else _draw(pipe, order, "off", None)
    images = {"base": base.images.float().cpu(), "lina": steered.images.float().cpu()}
    asked = [text for text in prompts for _ in range(order.num_images)]
    found = {name: verdicts(pipe.config["world"], batch, asked, steered.graphs[0]) for name, batch in images.items()}
    files = {
        f"images/{name}/{i:03d}.png": png_bytes(to_pil(image))
        for name, batch in images.items()
        for i, image in enumerate(batch)
    }
    files["pairs.png"] = png_bytes(pairs(prompts, images, found))
    for i, graph in enumerate(steered.graphs):
        if graph is not None:
            files["graph.svg" if len(prompts) == 1 else f"graph-{i:03d}.svg"] = graph_file(
                graph, contrasted_nodes(pipe.grammar)
            )
    assert steered.stats is not None and base.stats is not None
    files["run.json"] = run_record(
        "lina",
        arguments,
        steered.stats,
        guidance_scale=pipe.guidance_scale,
        prompts=[_record(steered, base, prompts[i], i, found, order.num_images) for i in range(len(prompts))],
        scores={name: mean_scores(batch) for name, batch in found.items()},
        base_stats=asdict(base.stats),
    )
    return files, _summary(steered, base, prompts, found)


def _draw(
    pipe: LINAPipeline, order: Order, intervention: str | Intervention, contrast: CausalContrast | None
) -> LINAPipelineOutput:
    count = len(order.prompts) * order.num_images
    output = pipe(
        list(order.prompts),
        num_inference_steps=order.steps,
        guidance_scale=order.guidance_scale,
        intervention=intervention,
        contrast=contrast,
        num_images_per_prompt=order.num_images,
        generator=[torch.Generator().manual_seed(order.seed + i) for i in range(count)],
        output_type="pt",
    )
    assert isinstance(output, LINAPipelineOutput)
    return output


def _record(
    output: LINAPipelineOutput,
    base: LINAPipelineOutput,
    prompt: str,
    index: int,
    found: Mapping[str, list[Verdict]],
    count: int,
) -> dict[str, Any]:
    """What run.json says of one prompt."""
    own = slice(index * count, (index + 1) * count)
    graph = output.graphs[index]
    return {
        "prompt": prompt,
        "intervention": json.loads(output.interventions[index].to_json()),
        "graph": None if graph is None else graph.to_dict(),
        "nfe": {"base": base.nfe[index], "lina": output.nfe[index]},
        "schedule": {"base": base.schedule[index], "lina": output.schedule[index]},
        "verdicts": {name: [verdict.as_dict() for verdict in batch[own]] for name, batch in found.items()},
    }


def _summary(
    steered: LINAPipelineOutput, base: LINAPipelineOutput, prompts: Sequence[str], found: Mapping[str, list[Verdict]]
) -> str:
    done = zip(prompts, steered.interventions, strict=True)
    lines = [f"{prompt}: intervention: {intervention_words(one)}" for prompt, one in done]
    if found["lina"]:
        passed = {name: sum(verdict.passed for verdict in batch) for name, batch in found.items()}
        lines.append(f"all checks passed: {passed['base']} of {len(found['base'])} plain, {passed['lina']} with LINA")
    rows = (
        f"network rows an image: {sum(base.nfe) / len(prompts):g} plain, {sum(steered.nfe) / len(prompts):g} with LINA"
    )
    return "\n".join([*lines, rows])
