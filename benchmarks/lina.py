"""LINA's interventions: does steering help where a model is wrong, does it leave alone what is right, and at what cost?

python benchmarks/lina.py --threads 2                       # all of it, from trained checkpoints
python benchmarks/lina.py --threads 1 --parts modes cost    # seconds; modes needs no checkpoint

- `modes`: ModeWorld, whose network is exact. Target rates by guidance, by contrast, and under a predictor with a gate;
  how often a warped schedule ends where a fine one does;
- `shadows`: ShadowWorld, prompts of a kind that training left out. Both directions: calibrated on one held-out half,
  tested on the other. The plain model, also with as many network rows; fixed settings; LINA adaptive, whose predictor
  is trained here; upper bounds that ask the verifier;
- `swap`: SwapWorld, pairs of captions with the same words, scored as in Winoground by the exact verifier;
- `cost`: the predictor's time, network rows beside their formula, a shut gate around a StableDiffusionPipeline, and
  whether search and predictor find planted optima.

Writes results/lina.json, lina.md and, of `shadows`, the picture lina.png. Parts that are not measured now stay as they
were, if they were measured with the same settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import device, natural, positive, run_or_explain, say, seconds, set_threads
from diffusers.utils import logging
from lina_gate import gate_cases
from lina_tables import markdown
from noise import load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import read_result, write_result

from gendiff.data.shadow_world import ShadowWorld
from gendiff.data.swap_world import SwapWorld
from gendiff.files import write_whole
from gendiff.pipelines.lina import LINAPipeline

PARTS = ("modes", "shadows", "swap", "cost")
KEPT = ("steps", "seeds", "calibration_seeds", "fixed_seeds", "look_seeds", "others", "in_distribution", "prompts")
KEPT += ("epochs", "block", "planted_seeds", "seed", "shadows_model", "swap_model")
"""Options that figures depend on."""


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure and write the report.

    Raises:
        ValueError, OSError: an argument or a model cannot be used.
    """
    for needed, name in ((("shadows", "cost"), args.shadows_model), (("swap",), args.swap_model)):
        if set(needed) & set(args.parts):
            model_folder(name)  # a model that is not there is told before anything is measured
    set_threads(args.threads)
    logging.disable_progress_bar()
    stem = args.out / args.name
    settings = {name: getattr(args, name) for name in KEPT}
    env = environment(args.device, "float32")
    old = read_result(stem.with_suffix(".json"))
    if old is not None and old["settings"] != settings:
        say(f"{stem}.json was measured with other settings: it is written anew")
        old = None
    cases, models = (old["cases"], old["models"]) if old else ([], {})
    # The page names every command that a figure of it came from.
    earlier = old["command"].splitlines() if old and set(args.parts) != set(PARTS) else []
    source = origin()
    source["command"] = "\n".join(dict.fromkeys([*earlier, source["command"]]))
    for part in (part for part in PARTS if part in args.parts):
        say(part)
        found, model = measured(part, args, stem)
        # Written after each part, so that what is measured stays if a later one fails.
        cases = [case for case in cases if part_of(case) not in (part, "gate")] + found
        cases = gate_cases(cases) + sorted(cases, key=lambda case: PARTS.index(part_of(case)))
        models |= {part: model} if model else {}
        env["load_after"] = load()
        write_result(
            stem.with_suffix(".json"), {**source, "env": env, "settings": settings, "models": models, "cases": cases}
        )
    result = read_result(stem.with_suffix(".json"))
    assert result is not None
    picture = stem.with_suffix(".png")
    text = markdown(result, picture.name if "shadows" in result["models"] else None)
    write_whole(stem.with_suffix(".md"), text)
    print(text)
    return stem.with_suffix(".json")


def part_of(case: dict[str, Any]) -> str:
    """The part that a case belongs to."""
    return case["row"].partition("/")[0].partition("-")[0]


def measured(part: str, args: argparse.Namespace, stem: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Cases of a part, and which model it was measured with, if any."""
    if part == "modes":
        from lina_modes import mode_cases

        return mode_cases(args), {}
    if part == "swap":
        from lina_swap import swap_cases

        pipe, model = opened(args.swap_model, args)
        return swap_cases(pipe, SwapWorld(num_images=1), args), model
    pipe, model = opened(args.shadows_model, args)
    world = ShadowWorld(num_images=1)
    if part == "cost":
        from lina_cost import cost_cases

        return cost_cases(pipe, world, args), model
    from lina_figure import draw
    from lina_shadows import shadow_cases, shadow_directions

    directions = shadow_directions(pipe, world, args)
    draw(directions, stem.with_suffix(".png"))
    return shadow_cases(directions, world.hops), model


def opened(name: str, args: argparse.Namespace) -> tuple[LINAPipeline, dict[str, str]]:
    """A pipeline and where it came from.

    Raises:
        OSError, ValueError: it cannot be loaded.
    """
    folder = model_folder(name)
    pipe = LINAPipeline.from_pretrained(folder).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"model": name, "sha256": checkpoint_sha256(folder)}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    options: tuple[tuple[str, Any, Any, str], ...] = (
        ("--shadows-model", str, "lina-shadows", "built-in name or folder (default: %(default)s)"),
        ("--swap-model", str, "lina-swap", "built-in name or folder (default: %(default)s)"),
        ("--steps", positive, 10, "of a walk (default: %(default)s)"),
        ("--seeds", positive, 8, "images of a prompt in tests (default: %(default)s)"),
        ("--calibration-seeds", positive, 8, "images of a prompt in calibration (default: %(default)s)"),
        ("--fixed-seeds", positive, 4, "of a prompt for fixed settings and the search on tests (default: %(default)s)"),
        ("--look-seeds", positive, 4, "images of a prompt in early stopping (default: %(default)s)"),
        ("--others", positive, 32, "training prompts of calibration (default: %(default)s)"),
        ("--in-distribution", positive, 32, "other training prompts, of the test (default: %(default)s)"),
        ("--prompts", positive, None, "of each held-out half, or pairs of swap (default: all)"),
        ("--epochs", positive, 3000, "of predictors, at most (default: %(default)s)"),
        ("--block", positive, 75, "samples of a seed and prompt in ModeWorld (default: %(default)s)"),
        ("--planted-seeds", positive, 3, "worlds with planted optima (default: %(default)s)"),
        ("--repeats", positive, 40, "timed runs of cost, at least (default: %(default)s)"),
        ("--budget", seconds, 40.0, "seconds of timed runs of each (default: %(default)g)"),
        ("--device", device, "cpu", "default: %(default)s"),
        ("--threads", natural, 0, "of torch; 0 = as torch chooses (default)"),
        ("--seed", natural, 0, "of weights and inputs of cost (default: %(default)s)"),
        ("--name", str, "lina", "of the result files (default: %(default)s)"),
        ("--out", Path, Path(__file__).parent / "results", "folder of results (default: benchmarks/results)"),
    )
    for name, kind, default, words in options:
        parser.add_argument(name, type=kind, default=default, help=words)
    return parser


if __name__ == "__main__":
    main()
