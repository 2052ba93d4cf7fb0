"""The scene graph of a prompt as a drawing: what the prompt says in the first row, what follows from it below."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from gendiff.causal.scene_grammar import TemplateGrammar
from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.causal.scene_node import Edge

from .graph_drawing import ROW, draw_graph

ROOM = 150
"""Pixels on the left for what a row is."""
TYPE = 'font-family="system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif"'
COLOURS = ":root { --ink: #1f2328; --faint: #b6bdc4; --paper: #ffffff; --accent: #c2410c; --effect: #1d6fa5; }"


def contrasted_nodes(grammar: TemplateGrammar) -> list[str]:
    """What a contrast sets otherwise: the swapped slots, or the one that changes."""
    if grammar.swap is not None:
        return list(grammar.swap)
    return [grammar.contrast] if grammar.contrast is not None else []


def prompt_graph(graph: CausalSceneGraph, intervened: Collection[str] = ()) -> str:
    """The graph as an inline `<svg>`, every stated node with its value, and rows named by their hop.

    Args:
        graph: of one prompt.
        intervened: ids of the nodes that a contrast sets otherwise.

    Raises:
        GraphError: one of them is no node of the graph.
    """
    names = {node.id: node.id if node.value is None else f"{node.id} = {node.value}" for node in graph.nodes}
    nodes = [replace(node, id=names[node.id], span=None) for node in graph.nodes]
    edges = [Edge(names[edge.src], names[edge.dst], edge.mechanism, edge.strength) for edge in graph.edges]
    svg = draw_graph(CausalSceneGraph(nodes, edges), [names.get(name, name) for name in intervened])
    return _with_hops(svg, max(graph.hops().values()))


def graph_file(graph: CausalSceneGraph, intervened: Collection[str] = ()) -> bytes:
    """Content of an SVG file of the same drawing, which needs no page around it."""
    svg = prompt_graph(graph, intervened)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    left, top, width, height = box[1].split()
    paper = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="var(--paper)"/>'
    head, rest = svg.split(">", 1)
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {TYPE} font-size="14" ', 1)
    return f"{head}><style>{COLOURS}</style>{paper}{rest}\n".encode()


def hop_words(hop: int) -> str:
    """What a hop is, in few words."""
    return {0: "said", 1: "follows"}.get(hop, "follows from that" if hop == 2 else "and so on")


def _with_hops(svg: str, deepest: int) -> str:
    """The drawing with room on its left, in which each row is named."""
    box = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)" width="\S+"', svg)
    assert box is not None
    left, top, width, height = (float(value) for value in box.groups())
    left, width = left - ROOM, width + ROOM
    wider = f'viewBox="{left:g} {top:g} {width:g} {height:g}" width="{width:g}"'
    texts = "".join(
        f'<text x="{left + 2:g}" y="{ROW * hop + 4:g}" font-size="13" fill="var(--ink,#262626)" opacity="0.65">'
        f"hop {hop}: {hop_words(hop)}</text>"
        for hop in range(deepest + 1)
    )
    return svg.replace(box[0], wider).replace("</svg>", f"{texts}</svg>")
