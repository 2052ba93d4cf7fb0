"""A causal graph as a small inline SVG: causes above their effects, and what an intervention does to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape

from gendiff.causal.graph import CausalGraph
from gendiff.causal.scene_graph import CausalSceneGraph

ROW, NODE_HEIGHT, MARGIN, GAP = 84, 32, 6, 18
# Pixels a letter takes in the drawing's type, on the wide side so that no name touches its border.
LETTER, PADDING = 7.6, 13
# Distance of arrows that end at one node, and size of their heads.
PORT, HEAD = 13, 7
# Height of the arc between two nodes of one row: at least, more for each pixel between them, at most.
ARC, ARC_SLOPE, ARC_MOST = 26, 0.12, 70


def draw_graph(graph: CausalGraph | CausalSceneGraph, intervened: Collection[str] = ()) -> str:
    """The graph as an `<svg>` element, to be styled by the page it stands in.

    Every node is a `<g>` of class "node", with "set" for an intervened variable and "follows" for its descendants;
    every edge a `<g>` of class "edge", with "cut" for those an intervention removes and "carries" for those along which
    it acts. Of a scene graph the rows are its hops, nodes that only follow from others have class "implied", and edges
    between nodes that the prompt states are arcs above them. Colours are the custom properties --ink, --faint, --paper,
    --accent and --effect, with a default each.

    Args:
        graph: what to draw.
        intervened: names of the variables (of a scene graph, ids of the nodes) set by hand.

    Raises:
        GraphError: an intervened variable is not in the graph.
    """
    if isinstance(graph, CausalSceneGraph):
        rows, implied, graph = graph.hops(), {node.id for node in graph.implied()}, graph.causal
    else:
        rows, implied = _depths(graph), set()
    affected = set(graph.mutilate(intervened).descendants(*intervened)) if intervened else set()
    centres = _centres(graph, rows)
    bows = [_bow(cause, effect, centres) for cause, effect in graph.edges]
    parts = []
    for (cause, effect), bow in zip(graph.edges, bows, strict=True):
        style = "cut" if effect in intervened else "carries" if cause in {*intervened, *affected} else ""
        parts.append(_edge(graph, cause, effect, centres, bow, style))
    for name in graph.names:
        style = "set" if name in intervened else "follows" if name in affected else ""
        parts.append(_node(name, *centres[name], style, name in implied and style != "set"))
    left = min(x - _width(name) / 2 for name, (x, _) in centres.items()) - MARGIN
    right = (
        max([x + _width(name) / 2 for name, (x, _) in centres.items()] + [x for x in bows if x is not None]) + MARGIN
    )
    arcs = [_rise(cause, effect, centres) for cause, effect in graph.edges if rows[cause] >= rows[effect]]
    top = -NODE_HEIGHT / 2 - MARGIN - max(arcs, default=0)
    bottom = max(y for _, y in centres.values()) + NODE_HEIGHT / 2 + MARGIN
    width, height = right - left, bottom - top
    box = f"{left:g} {top:g} {width:g} {height:g}"
    return (
        f'<svg class="causal-graph" viewBox="{box}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(_description(graph, intervened, implied))}">{"".join(parts)}</svg>'
    )


def _depths(graph: CausalGraph) -> dict[str, int]:
    """Row of each name: the length of the longest path from a root."""
    depth: dict[str, int] = {}
    for name in graph.topological_order:
        depth[name] = 1 + max((depth[parent] for parent in graph.parents(name)), default=-1)
    return depth


def _centres(graph: CausalGraph, rows: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Centre (x, y) of each node: effects stand below the middle of their causes, as far as there is room."""
    centres: dict[str, tuple[float, float]] = {}
    for level in range(1 + max(rows.values())):
        names = [name for name in graph.names if rows[name] == level]
        above = {name: [parent for parent in graph.parents(name) if rows[parent] < level] for name in names}
        wanted = {name: _mean([centres[parent][0] for parent in above[name]]) for name in names}
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
    # An edge upwards, to an effect that the prompt states, has its own rows to pass too.
    edges = [x + _width(name) / 2 for name, (x, y) in centres.items() if y0 < y < y1 or y1 <= y <= y0 != y1]
    return max([*(x + GAP for x in edges), x0, x1]) if edges else None


def _rise(cause: str, effect: str, centres: dict[str, tuple[float, float]]) -> float:
    """Height above its nodes of an edge that does not lead down."""
    return min(ARC + ARC_SLOPE * abs(centres[cause][0] - centres[effect][0]), ARC_MOST)


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
    if centres[cause][1] >= centres[effect][1]:
        # Off the middle, so that it does not leave where another arc arrives.
        x0, y0 = centres[cause][0] + (PORT if x1 > x0 else -PORT), centres[cause][1] - NODE_HEIGHT / 2
        peak = min(y0, y1) - _rise(cause, effect, centres)
        if bow is None:
            path = f"M{x0:g} {y0:g}C{x0:g} {peak:g} {x1:g} {peak:g} {x1:g} {y1:g}"
            # The middle of a cubic whose control points have one height.
            y = (y0 + y1) / 8 + 0.75 * peak
        else:
            path = f"M{x0:g} {y0:g}C{x0:g} {y0 - ARC:g} {x:g} {y0:g} {x:g} {y0 - ARC:g}"
            path += f"V{y1:g}C{x:g} {peak:g} {x1:g} {peak:g} {x1:g} {y1:g}"
    elif bow is None:
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


def _node(name: str, x: float, y: float, style: str, implied: bool) -> str:
    width = _width(name)
    fill, ink = "var(--paper,#fff)", "var(--ink,#262626)"
    if style == "set":
        fill, ink = "var(--accent,#c2410c)", "var(--paper,#fff)"
    classes = f"node implied {style}" if implied else f"node {style}"
    dash = ' stroke-dasharray="4 4"' if implied else ""
    border = _colour(style) if style else "var(--faint,#a3a3a3)"
    return (
        f'<g class="{classes}"><rect x="{x - width / 2:g}" y="{y - NODE_HEIGHT / 2:g}" width="{width:g}" '
        f'height="{NODE_HEIGHT}" rx="{NODE_HEIGHT / 2:g}" fill="{fill}" stroke="{border}" stroke-width="1.6"{dash}/>'
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


def _description(graph: CausalGraph, intervened: Collection[str], implied: Collection[str]) -> str:
    causes = "; ".join(f"{cause} causes {effect}" for cause, effect in graph.edges) or "no causes"
    hand = f"; set by hand: {', '.join(intervened)}" if intervened else ""
    unsaid = f"; implied: {', '.join(name for name in graph.names if name in implied)}" if implied else ""
    return f"Causal graph of {', '.join(graph.names)}: {causes}{unsaid}{hand}"
