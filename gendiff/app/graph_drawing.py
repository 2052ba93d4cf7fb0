"""A causal graph as a small inline SVG: causes above their effects, and what an intervention does to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from gendiff.causal.graph import CausalGraph

ROW, NODE_HEIGHT, MARGIN, GAP = 84, 32, 6, 18
# Pixels a letter takes in the drawing's type, on the wide side so that no name touches its border.
LETTER, PADDING = 7.6, 13
# Distance of arrows that end at one node, and size of their heads.
PORT, HEAD = 13, 7


def draw_graph(graph: CausalGraph, intervened: Collection[str] = ()) -> str:
    """The graph as an `<svg>` element, to be styled by the page it stands in.

    Every node is a `<g>` of class "node", with "set" for an intervened variable and "follows" for its descendants;
    every edge a `<g>` of class "edge", with "cut" for those an intervention removes and "carries" for those along which
    it acts. Colours are the custom properties --ink, --faint, --paper, --accent and --effect, with a default each.

    Args:
        graph: what to draw.
        intervened: names of the variables set by hand.

    Raises:
        GraphError: an intervened variable is not in the graph.
    """
    affected = set(graph.mutilate(intervened).descendants(*intervened)) if intervened else set()
    centres = _centres(graph)
    bows = [_bow(cause, effect, centres) for cause, effect in graph.edges]
    parts = []
    for (cause, effect), bow in zip(graph.edges, bows, strict=True):
        style = "cut" if effect in intervened else "carries" if cause in {*intervened, *affected} else ""
        parts.append(_edge(graph, cause, effect, centres, bow, style))
    for name in graph.names:
        style = "set" if name in intervened else "follows" if name in affected else ""
        parts.append(_node(name, *centres[name], style))
    left = min(x - _width(name) / 2 for name, (x, _) in centres.items()) - MARGIN
    right = (
        max([x + _width(name) / 2 for name, (x, _) in centres.items()] + [x for x in bows if x is not None]) + MARGIN
    )
    top, bottom = -NODE_HEIGHT / 2 - MARGIN, max(y for _, y in centres.values()) + NODE_HEIGHT / 2 + MARGIN
    width, height = right - left, bottom - top
    box = f"{left:g} {top:g} {width:g} {height:g}"
    return (
        f'<svg class="causal-graph" viewBox="{box}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(_description(graph, intervened))}">{"".join(parts)}</svg>'
    )


def _layers(graph: CausalGraph) -> list[list[str]]:
    """Names by depth, the length of the longest path from a root."""
    depth: dict[str, int] = {}
    for name in graph.topological_order:
        depth[name] = 1 + max((depth[parent] for parent in graph.parents(name)), default=-1)
    return [[name for name in graph.names if depth[name] == level] for level in range(1 + max(depth.values()))]


def _centres(graph: CausalGraph) -> dict[str, tuple[float, float]]:
    """Centre (x, y) of each node: effects stand below the middle of their causes, as far as there is room."""
    centres: dict[str, tuple[float, float]] = {}
    for level, names in enumerate(_layers(graph)):
        wanted = {name: _mean([centres[parent][0] for parent in graph.parents(name)]) for name in names}
        ordered = sorted(names, key=lambda name: wanted[name])
        placed: list[float] = []
        for i, name in enumerate(ordered):
            room = [placed[-1] + (_width(ordered[i - 1]) + _width(name)) / 2 + GAP] if placed else []
            placed.append(max([wanted[name], *room]))
        shift = _mean([wanted[name] - x for name, x in zip(ordered, placed, strict=True)])
        centres |= {name: (x + shift, level * ROW) for name, x in zip(ordered, placed, strict=True)}
    return centres


def _width(name: str) -> float:
    return len(name) * LETTER + 2 * PADDING


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _bow(cause: str, effect: str, centres: dict[str, tuple[float, float]]) -> float | None:
    """x through which an edge passes beside the layers it skips, None for one that skips none."""
    (x0, y0), (x1, y1) = centres[cause], centres[effect]
    edges = [x + _width(name) / 2 for name, (x, y) in centres.items() if y0 < y < y1]
    return max([*(x + GAP for x in edges), x0, x1]) if edges else None


def _edge(
    graph: CausalGraph,
    cause: str,
    effect: str,
    centres: dict[str, tuple[float, float]],
    bow: float | None,
    style: str,
) -> str:
    x0 = centres[cause][0] + _port(effect, graph.children(cause), centres)
    x1 = centres[effect][0] + _port(cause, graph.parents(effect), centres)
    y0, y1 = centres[cause][1] + NODE_HEIGHT / 2, centres[effect][1] - NODE_HEIGHT / 2 - HEAD
    x, y = ((x0 + x1) / 2 if bow is None else bow), (y0 + y1) / 2
    if bow is None:
        path = f"M{x0:g} {y0:g}C{x0:g} {y:g} {x1:g} {y:g} {x1:g} {y1:g}"
    else:
        path = f"M{x0:g} {y0:g}C{x0:g} {y0 + ROW / 3:g} {x:g} {y0 + ROW / 6:g} {x:g} {y:g}"
        path += f"S{x1:g} {y1 - ROW / 3:g} {x1:g} {y1:g}"
    line = f'<path d="{path}" fill="none" stroke="{_colour(style)}" stroke-width="1.6"'
    if style == "cut":
        cross = f"M{x - 5:g} {y - 5:g}l10 10m0 -10l-10 10"
        return (
            f'<g class="edge cut">{line} stroke-dasharray="2 5" stroke-linecap="round"/>'
            f'<path d="{cross}" stroke="var(--accent,#c2410c)" stroke-width="2" stroke-linecap="round"/></g>'
        )
    head = f"M{x1 - HEAD / 2:g} {y1 - 1:g}h{HEAD:g}L{x1:g} {y1 + HEAD:g}z"
    return f'<g class="edge {style}">{line}/><path d="{head}" fill="{_colour(style)}"/></g>'


def _port(other: str, others: Sequence[str], centres: dict[str, tuple[float, float]]) -> float:
    """Offset at a node of its edge to `other`, so that no two of its edges meet in one point."""
    ordered = sorted(others, key=lambda name: centres[name][0])
    return PORT * (ordered.index(other) - (len(ordered) - 1) / 2)


def _node(name: str, x: float, y: float, style: str) -> str:
    width = _width(name)
    fill, ink = "var(--paper,#fff)", "var(--ink,#262626)"
    if style == "set":
        fill, ink = "var(--accent,#c2410c)", "var(--paper,#fff)"
    border = _colour(style) if style else "var(--faint,#a3a3a3)"
    return (
        f'<g class="node {style}"><rect x="{x - width / 2:g}" y="{y - NODE_HEIGHT / 2:g}" width="{width:g}" '
        f'height="{NODE_HEIGHT}" rx="{NODE_HEIGHT / 2:g}" fill="{fill}" stroke="{border}" stroke-width="1.6"/>'
        f'<text x="{x:g}" y="{y:g}" fill="{ink}" font-size="13" font-weight="{600 if style == "set" else 400}" '
        f'text-anchor="middle" dominant-baseline="central">{escape(name)}</text></g>'
    )


def _colour(style: str) -> str:
    return {
        "set": "var(--accent,#c2410c)",
        "follows": "var(--effect,#1d6fa5)",
        "carries": "var(--effect,#1d6fa5)",
        "cut": "var(--faint,#a3a3a3)",
    }.get(style, "var(--muted,#6b7280)")


def _description(graph: CausalGraph, intervened: Collection[str]) -> str:
    causes = "; ".join(f"{cause} causes {effect}" for cause, effect in graph.edges) or "no causes"
    hand = f"; set by hand: {', '.join(intervened)}" if intervened else ""
    return f"Causal graph of {', '.join(graph.names)}: {causes}{hand}"
