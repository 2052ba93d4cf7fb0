"""What the gallery says of LINA, as pieces of HTML, one function for each block."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from torch import Tensor

from gendiff.causal.scene_grammar import TemplateGrammar
from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.samplers.intervention import Intervention

from .lina_answers import Answer, Side
from .lina_graph import contrasted_nodes, hop_words, prompt_graph
from .lina_verdicts import Verdict
from .lina_words import intervention_words
from .line_chart import Curve, line_chart
from .markup import enlargement, number, picture, table

MOST_FAILED = 3
"""Failed checks that are named under a picture, at most."""
SEEN = {
    None: "",
    True: "The predictor was made with prompts of this kind: here it was shown what helps.",
    False: "The predictor never saw prompts of this kind either.",
}
PLOTTED = 1.1
"""Kappa of a warp that is shown, at least: below it the two schedules are one line."""
ARROW = "\N{RIGHTWARDS ARROW}"


def graph_block(graph: CausalSceneGraph, grammar: TemplateGrammar) -> str:
    """The scene graph of one prompt, with what a contrast sets otherwise."""
    changed = contrasted_nodes(grammar)
    implied = "; ".join(f"<code>{escape(node.id)}</code>: {escape(node.text)}" for node in graph.implied())
    about = f"The contrast is against &ldquo;{escape(grammar.counterfactual(graph.prompt))}&rdquo;: "
    if grammar.swap is not None:
        about += "the same words with their places exchanged."
    else:
        about += f"<code>{escape(changed[0])}</code> is set otherwise, and what it causes follows (blue)."
    return (
        f'<section class="block"><h4>What follows from a prompt</h4><p>&ldquo;{escape(graph.prompt)}&rdquo; says what '
        f"stands in the first row. The dashed nodes follow from it and are never named. {implied[:1].upper()}"
        f"{implied[1:]}.</p>"
        f'<figure class="scroll">{prompt_graph(graph, changed)}</figure>'
        f"<figure><figcaption>{about}</figcaption></figure></section>"
    )


def answer_block(answer: Answer) -> str:
    """Prompts of one kind with a right picture, the plain one and that with LINA, and the verdicts."""
    said = f"{answer.kind.text} {SEEN[answer.calibrated]}"
    return (
        f'<section class="block"><h4>{escape(answer.kind.title)}</h4><p>{said}</p>{_plate(answer)}{_verdict(answer)}'
        "</section>"
    )


def _plate(answer: Answer) -> str:
    columns, side = len(answer.prompts), answer.plain.images.shape[-1]
    cells = [_label("Prompt"), *(f'<div class="cell prompt">{escape(text)}</div>' for text in answer.prompts)]
    if answer.truths is not None:
        cells.append(_label("Right", "drawn by the rules"))
        cells += [
            _cell(image, f"right picture of {text}") for image, text in zip(answer.truths, answer.prompts, strict=True)
        ]
    for name, way in (("Plain", answer.plain), ("LINA", answer.lina)):
        cells.append(_label(name, "what is wrong" if way.found else ""))
        for i, text in enumerate(answer.prompts):
            verdict = way.found[i] if way.found else None
            cells.append(_cell(way.images[i], f"{name}, {text}", verdict))
    cells.append(_label("Done", "by the predictor"))
    cells += [f'<div class="cell done">{_done(one)}</div>' for one in answer.lina.output.interventions]
    width = enlargement(side, columns) * side
    return (
        f'<figure class="plate verdicts" style="--columns:{columns};--side:{width}px"><div class="rows">'
        f"{''.join(cells)}</div></figure>"
    )


def _label(name: str, note: str = "") -> str:
    small = f"<small>{note}</small>" if note else ""
    return f'<div class="label"><b>{name}</b>{small}</div>'


def _cell(image: Tensor, alt: str, verdict: Verdict | None = None) -> str:
    if verdict is None:
        return f'<div class="cell">{picture(image, alt)}</div>'
    if verdict.passed:
        return f'<div class="cell right">{picture(image, f"{alt}: all right")}<span>all right</span></div>'
    failed = verdict.failed
    shown = (
        failed if len(failed) <= MOST_FAILED else [*failed[: MOST_FAILED - 1], f"{len(failed) - MOST_FAILED + 1} more"]
    )
    spans = "".join(f"<span>{escape(name)}</span>" for name in shown)
    said = f"{alt}; wrong: {', '.join(failed)}"
    return f'<div class="cell wrong" title="{escape(", ".join(failed))}">{picture(image, said)}{spans}</div>'


def _done(one: Intervention) -> str:
    return "".join(f"<span>{escape(part)}</span>" for part in intervention_words(one).split(", "))


def _verdict(answer: Answer) -> str:
    plain, lina = answer.plain, answer.lina
    if not plain.found:
        return ""
    touched = sum(not one.is_identity for one in lina.output.interventions)
    count = len(answer.prompts)
    done = f"which intervened in {touched}" if touched else "which left all of them alone: the same pictures twice"
    return (
        f"<figure><figcaption>All right: <b>{plain.right} of {count}</b> plain, <b>{lina.right} of {count}</b> with "
        f"LINA, {done}.</figcaption></figure>"
    )


def score_block(found: Sequence[Answer]) -> str:
    """Scores over the pictures shown; nothing where there are no verdicts."""
    if not found[0].plain.found:
        return ""
    hops = sorted(name for name in found[0].plain.found[0].scores if name != "pap_all")
    head = ["", "pictures", "all right, plain", "all right, LINA"]
    head += [f"hop {name.removeprefix('pap@')}<br>{hop_words(int(name.removeprefix('pap@')))}" for name in hops]
    rows = []
    for answer in found:
        plain, lina = answer.plain, answer.lina
        count = len(plain.found)
        changes = [f"{number(plain.mean(name), 2)}&nbsp;{ARROW}&nbsp;{number(lina.mean(name), 2)}" for name in hops]
        title = escape(answer.kind.title.partition(":")[0])
        rows.append([title, str(count), f"{plain.right} of {count}", f"{lina.right} of {count}", *changes])
    total = sum(len(answer.plain.found) for answer in found)
    return (
        '<section class="block"><h4>Scores of the pictures above</h4><p>How many pictures are all right '
        f"(<code>pap_all</code>), and the share of checks passed, plain {ARROW} with LINA, by how far from the words "
        f"of the prompt the checked thing is. {total} pictures each way show what happens and measure little: one more "
        "or less is chance. What was measured, with intervals and with the settings that lost, is in "
        f"<code>benchmarks/results/lina.md</code>.</p>{table(head, rows)}</section>"
    )


def schedule_block(found: Sequence[Answer]) -> str:
    """The noise left after each step, plain and under the strongest warp; nothing where no warp is to be seen."""
    warped = [
        (answer.lina.output.schedule[i], one)
        for answer in found
        for i, one in enumerate(answer.lina.output.interventions)
        if one.gate and one.warp.parameter >= PLOTTED
    ]
    if not warped:
        return ""
    shares, one = max(warped, key=lambda pair: pair[1].warp.parameter)
    plain = found[0].plain.output.schedule[0]
    steps = [float(step) for step in range(len(plain) + 1)]
    curves: dict[str, Curve] = {"plain": (steps, [*plain, 0.0]), "LINA": (steps, [*shares, 0.0])}
    words = escape(intervention_words(Intervention(warp=one.warp)))
    bent = f"{len(warped)} of {sum(len(answer.prompts) for answer in found)}"
    return (
        '<section class="block"><h4>Steps, spaced anew</h4><p>What causes what is settled in the first steps, while '
        f"the picture still is mostly noise. The predictor bent the schedule of {bent} prompts, the most as shown "
        f"({words}). The number of steps and both ends stay, so it costs nothing but precision in the last steps.</p>"
        f"<figure>{line_chart(curves, 'step', 's, share of noise')}</figure></section>"
    )


def cover(answer: Answer) -> str:
    """The first prompts, plain and with LINA side by side, for the list of contents."""
    pairs = [(way.images[i], way) for i in range(min(3, len(answer.prompts))) for way in (answer.plain, answer.lina)]
    strip = "".join(picture(image, "") for image, _ in pairs)
    prompts = "A prompt" if len(pairs) == 2 else f"{['Two', 'Three'][len(pairs) // 2 - 2]} prompts, each"
    return f'<span class="strip">{strip}</span><small>{prompts} drawn by the plain model, then with LINA.</small>'


def mean_rows(sides: Sequence[Side]) -> float:
    """Network rows an image, mean over all prompts of some answers."""
    spent = [rows for side in sides for rows in side.output.nfe]
    return sum(spent) / len(spent)
