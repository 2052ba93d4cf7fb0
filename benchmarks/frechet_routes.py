"""Is our Fréchet distance exact, and how fast is it, at the width of Inception features?

Correlated features are drawn and their statistics taken outside the clock. Then every method is asked for the same
number: ours from statistics and from features, torch-fidelity, torchmetrics, and the textbook formula with
scipy.linalg.sqrtm. They take turns in one process, all with the same number of threads. Of ours, the time includes the
estimate of the bias that a distance of fewer than 10 images a dimension is told with; no other method makes one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import natural, positive, run_or_explain, say, set_threads
from noise import NOISY_BELOW, load
from provenance import environment, origin
from report import environment_line, markdown_table, write_result
from timing import summary, time_once

from gendiff.files import write_whole
from gendiff.metrics.frechet import FrechetStats, Route, frechet_distance

OUTPUT = Path(__file__).parent / "results" / "frechet-routes.json"
BARS = {"relative_difference": 1e-10, "sqrtm_ratio": 3.0}
"""The largest relative difference to torch-fidelity that counts as equal, and the least speed-up over sqrtm."""
OURS, TRUTH, SQRTM = "ours, statistics", "torch-fidelity", "scipy sqrtm"


class Sides(NamedTuple):
    """Two sets of features, float64 (N, d), and their statistics in each form a method wants."""

    rows: list[np.ndarray]
    moments: list[tuple[np.ndarray, np.ndarray]]
    stats: list[FrechetStats]


def draw(dim: int, count: int, seed: int, smallest: float) -> Sides:
    """Gaussian features of both sides; eigenvalues of their covariances run from 1 to `smallest`, in different axes."""
    rng = np.random.default_rng(seed)
    rows = []
    for shift in (0.0, 0.05):
        turn, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        rows.append(rng.standard_normal((count, dim)) * np.geomspace(1, smallest**0.5, dim) @ turn + shift)
    moments = [(side.mean(axis=0), np.cov(side, rowvar=False)) for side in rows]
    return Sides(rows, moments, [FrechetStats.from_moments(*side, n=count) for side in moments])


def ours(sides: Sides, route: Route) -> float:
    """By one of our routes."""
    a, b = sides.rows if route == "features" else sides.stats
    return frechet_distance(a, b, route=route, warn=False).value


def torch_fidelity(sides: Sides) -> float:
    """Roots of the eigenvalues of the product, in numpy."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    stats = ({"mu": mean, "sigma": cov} for mean, cov in sides.moments)
    return fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]


def torchmetrics(sides: Sides) -> float:
    """Roots of the eigenvalues of the product, in torch."""
    from torchmetrics.image.fid import _compute_fid

    return _compute_fid(*(torch.from_numpy(part) for side in sides.moments for part in side)).item()


def sqrtm(sides: Sides) -> float:
    """The textbook formula."""
    from scipy.linalg import sqrtm as root

    (mean_a, cov_a), (mean_b, cov_b) = sides.moments
    trace = np.trace(root(cov_a @ cov_b)).real
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)


METHODS: dict[str, Callable[[Sides], float]] = {
    OURS: lambda sides: ours(sides, "statistics"),
    "ours, features": lambda sides: ours(sides, "features"),
    TRUTH: torch_fidelity,
    "torchmetrics": torchmetrics,
    SQRTM: sqrtm,
}


def measure(dim: int, count: int, seed: int, smallest: float, repeats: int) -> list[dict[str, Any]]:
    """A case for each method, with its value and its times."""
    small, sides = (draw(*size, seed, smallest) for size in ((8, 16), (dim, count)))
    for method in METHODS.values():  # imports
        method(small)
    device, values = torch.device("cpu"), {}
    wall, cpu = ({name: [] for name in METHODS} for _ in range(2))
    for turn in range(repeats):
        for name in list(METHODS)[:: 1 if turn % 2 == 0 else -1]:
            seconds, own, values[name] = time_once(lambda method=METHODS[name]: method(sides), device)
            wall[name].append(seconds)
            cpu[name].append(own)
            say(f"{name}: {values[name]:.15g} in {seconds:.2f} s, {own:.2f} s of CPU")
    return [case(name, values, wall, cpu, count, seed) for name in METHODS]


def case(
    name: str,
    values: dict[str, float],
    wall: dict[str, list[float]],
    cpu: dict[str, list[float]],
    count: int,
    seed: int,
) -> dict[str, Any]:
    """One method: its number, how far that is from torch-fidelity's, and how much time it takes of ours."""
    share = statistics.median(cpu[name]) / statistics.median(wall[name]) / torch.get_num_threads()
    cells = {
        "distance": values[name],
        "relative_difference": abs(values[name] / values[TRUTH] - 1),
        "seconds": statistics.median(wall[name]),
        "cpu_seconds": statistics.median(cpu[name]),
        "ratio": paired_ratio(wall[name], wall[OURS]),
        "cpu_ratio": paired_ratio(cpu[name], cpu[OURS]),
    }
    return {
        "row": name,
        "seed": seed,
        "cells": [{"metric": metric, "value": value, "n": count} for metric, value in cells.items()],
        "timings_s": wall[name],
        "cpu_timings_s": cpu[name],
        **summary(wall[name]),
        "cpu_share": share,
        "noisy": share < NOISY_BELOW,
    }


def paired_ratio(theirs: list[float], own: list[float]) -> float:
    """Median over turns of their time / ours."""
    return statistics.median(one / other for one, other in zip(theirs, own, strict=True))


def cells_of(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Row -> metric -> value."""
    return {case["row"]: {cell["metric"]: cell["value"] for cell in case["cells"]} for case in result["cases"]}


def claims(result: dict[str, Any]) -> list[str]:
    """What was promised, what was measured, and whether it is enough."""
    rows, noisy = cells_of(result), any(case["noisy"] for case in result["cases"] if case["row"] in (OURS, SQRTM))
    difference, bar = rows[OURS]["relative_difference"], BARS["relative_difference"]
    lines = [f"Relative difference to torch-fidelity {difference:.1e}, bar {bar:.0e}: {_met(difference <= bar)}."]
    # Where other work takes the cores away, seconds of this process still tell how much there is to do.
    for metric, of in (("ratio", "wall"), ("cpu_ratio", "CPU")):
        ratio, bar = rows[SQRTM][metric], BARS["sqrtm_ratio"]
        doubt = " (the machine was busy)" if noisy and metric == "ratio" else ""
        lines.append(f"sqrtm takes {ratio:.2f} times our {of} time{doubt}, bar {bar:g}: {_met(ratio >= bar)}.")
    return lines


def to_markdown(result: dict[str, Any]) -> str:
    """The table, and whether the bars are met."""
    settings, env = result["settings"], result["env"]
    header = ("method", "distance", "relative to torch-fidelity", "s", "CPU s", "times ours", "CPU times ours", "noisy")
    rows = [
        (
            case["row"],
            f"{cells['distance']:.12g}",
            f"{cells['relative_difference']:.1e}",
            f"{cells['seconds']:.2f}",
            f"{cells['cpu_seconds']:.2f}",
            f"{cells['ratio']:.2f}",
            f"{cells['cpu_ratio']:.2f}",
            "yes" if case["noisy"] else "no",
        )
        for case, cells in zip(result["cases"], cells_of(result).values(), strict=True)
    ]
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    parts = [
        "# Fréchet distance: routes and peers",
        f"d = {settings['dim']}, N = {settings['num']} a side, eigenvalues from 1 to "
        f"{settings['smallest_eigenvalue']:g}; medians of {settings['repeats']} turns.",
        markdown_table(header, rows),
        "\n".join(f"- {line}" for line in claims(result)),
        f"{environment_line(env)} {versions}; load {env['load_before']['average']} to {env['load_after']['average']}.",
        f"`{result['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def run(args: argparse.Namespace) -> Path:
    """Measure, and write JSON and Markdown."""
    from threadpoolctl import threadpool_limits

    set_threads(args.threads)
    settings = {
        "dim": args.dim,
        "num": args.num,
        "smallest_eigenvalue": args.smallest,
        "repeats": args.repeats,
        "bars": BARS,
        "versions": {name: version(name) for name in ("scipy", "torch-fidelity", "torchmetrics")},
    }
    env = environment("cpu", "float64")
    with threadpool_limits(torch.get_num_threads()):  # numpy and scipy have threads of their own
        cases = measure(args.dim, args.num, args.seed, args.smallest, args.repeats)
    result = {
        **origin(),
        "env": {**env, "load_after": load()},
        "settings": settings,
        "cases": cases,
    }
    write_result(args.output, result)
    text = to_markdown(result)
    write_whole(args.output.with_suffix(".md"), text)
    print(text)
    return args.output


def main(argv: list[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=positive, default=2048, help="default: %(default)s")
    parser.add_argument("--num", type=positive, default=5000, help="a side, above --dim (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0, help="default: %(default)s")
    parser.add_argument("--smallest", type=share, default=1e-3, help="eigenvalue of both sides (default: %(default)g)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of every method (default: %(default)s)")
    parser.add_argument("--threads", type=natural, default=0, help="of every method; 0 = as torch chooses (default)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: benchmarks/results/frechet-routes.json")
    args = parser.parse_args(argv)
    if args.num <= args.dim:
        parser.error(f"--num must be above --dim {args.dim}, got {args.num}: below, the peers lose half their digits.")
    return run_or_explain(run, args, parser)


def share(text: str) -> float:
    """A number above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def _met(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    main()
