"""The gallery's chapter on LINA: prompts that training never joined, drawn plain and steered, with the verdicts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from html import escape

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.registry import Checkpoint

from .lina_answers import Answer, answers
from .lina_blocks import answer_block, cover, graph_block, mean_rows, schedule_block, score_block
from .lina_graph import contrasted_nodes, graph_file
from .lina_pairs import pairs
from .markup import code, facts
from .pictures import png_bytes
from .section import Chapter, Section, Settings

MOST_STEPS = 10
"""Of every picture: with so many the predictor was made."""
MOST_PROMPTS = 7
"""Of each kind."""


def build(checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    """The section of one checkpoint.

    Raises:
        ValueError: the checkpoint is damaged.
        OSError: a file is missing.
    """
    pipe: LINAPipeline = pipeline("lina", checkpoint.path, device=settings.device)
    pipe.set_progress_bar_config(disable=True)
    steps = min(settings.steps, MOST_STEPS)
    say(f"prompts in {steps} steps, plain and with LINA")
    found = answers(pipe, min(settings.num_images, MOST_PROMPTS), settings.seed, steps)
    graph = pipe.grammar.parse(found[0].prompts[0])
    html = (
        f"<h3>{escape(checkpoint.name)}</h3>{_facts(checkpoint, pipe, found, steps)}"
        f"{graph_block(graph, pipe.grammar)}{''.join(answer_block(answer) for answer in found)}"
        f"{score_block(found)}{schedule_block(found)}{_repeat(checkpoint, found[0], steps, settings)}"
    )
    files = {
        f"{answer.kind.name or 'prompts'}.png": png_bytes(
            pairs(
                answer.prompts,
                {"base": answer.plain.images, "lina": answer.lina.images},
                {"base": answer.plain.found, "lina": answer.lina.found},
            )
        )
        for answer in found
    }
    files["graph.svg"] = graph_file(graph, contrasted_nodes(pipe.grammar))
    return Section(html, cover(found[0]), {f"{checkpoint.name}/{name}": content for name, content in files.items()})


CHAPTER = Chapter("LINA", "lina.html", build)


def _facts(checkpoint: Checkpoint, pipe: LINAPipeline, found: Sequence[Answer], steps: int) -> str:
    def millions(part: object) -> str:
        return f"{sum(weight.numel() for weight in part.parameters()) / 1e6:.2f} million"  # type: ignore[attr-defined]

    size = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
    channels, side, _ = pipe.sample_shape
    plain, lina = (mean_rows([getattr(answer, way) for answer in found]) for way in ("plain", "lina"))
    seconds = [sum(getattr(answer, way).output.stats.seconds for answer in found) for way in ("plain", "lina")]
    count, guidance = sum(len(answer.prompts) for answer in found), pipe.config["guidance_scale"]
    return facts(
        [
            ("Pictures", f"{side} &times; {side} px, {'colour' if channels == 3 else f'{channels} channels'}"),
            ("Prompts", f"&ldquo;{escape(pipe.grammar.template)}&rdquo;"),
            (
                "Weights",
                f"{millions(pipe.transformer)} parameters, {millions(pipe.text_encoder)} of the text encoder"
                + (f", {millions(pipe.predictor)} of the predictor" if pipe.predictor is not None else "")
                + f"; {size / 1e6:.1f} MB",
            ),
            (
                "Guidance",
                f"{guidance:g}{' (off)' if guidance == 1 else ''}, chosen for the plain model, used both ways",
            ),
            (
                "Cost",
                f"{plain:g} network rows an image in {steps} steps plain, {lina:.1f} with LINA; "
                f"{seconds[0] / count:.3f} and {seconds[1] / count:.3f} s on {pipe.device.type}",
            ),
        ]
    )


def _repeat(checkpoint: Checkpoint, answer: Answer, steps: int, settings: Settings) -> str:
    device = f" --device {shlex.quote(settings.device)}" if settings.device else ""
    prompt = answer.prompts[0]
    start = f"gendiff sample lina --model {checkpoint.name}{device} --steps {steps} --seed {answer.seed}"
    shell = (
        f"{start} \\\n    --prompt {shlex.quote(prompt)} --out out/lina\n"
        f"{start} \\\n    --prompt {shlex.quote(prompt)} \\\n    --intervention lam=1,stop=0.4 --out out/by-hand"
    )
    placed = f", device={settings.device!r}" if settings.device else ""
    python = (
        "import gendiff, torch\n\n"
        f'pipe = gendiff.pipeline("lina", "{checkpoint.name}"{placed})\n'
        f"out = pipe({json.dumps(prompt)},\n"
        f"           num_inference_steps={steps}, generator=torch.Generator().manual_seed({answer.seed}))\n"
        'out.images[0].save("picture.png")\n'
        "print(out.interventions[0], out.graphs[0].hops())"
    )
    return f'<section class="block"><h4>Ask it yourself</h4>{code(shell)}{code(python)}</section>'
