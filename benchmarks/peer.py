"""What does our pipeline cost beyond plain diffusers? The same images, made both ways, timed turn by turn.

python benchmarks/peer.py --steps 50 --batches 1,8

The peer has the same weights, schedule and noise: `diffusers.DDIMPipeline` for a model without classes, and for one
with classes the loop that one writes by hand around `UNet2DModel` and the scheduler. Equal images are asserted first.
Writes results/peer-NAME.json and a report (.md).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from arguments import add_machine_options, growing, positive, run_or_explain, say, set_threads
from calibration import DTYPES, calibrate
from calls import Work, load, make_call
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from flops import count_flops
from harness import as_tensor, figures, network_seconds, network_times
from noise import load as machine_load
from paired import compare_runs, verdict
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import markdown_table, write_result
from timed_tables import timed_markdown
from timing import bootstrap_ci
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.files import write_whole
from gendiff.pipelines.registry import get_task

TASK = "image-generation"


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure every batch and write the report.

    Raises:
        ValueError, OSError: an argument or model cannot be used, or the images differ.
    """
    set_threads(args.threads)
    model = args.model or get_task(TASK).checkpoint
    work = Work(TASK, model, args.steps, args.device, args.dtype, seed=args.seed)
    output = args.output or Path(__file__).parent / "results" / f"peer-{work.name}.json"
    env = environment(args.device, args.dtype)
    pipe = load(work)
    name, peer = peer_of(pipe)
    say(f"{type(pipe).__name__} against {name}; calibrating")
    calibration = calibrate(args.device, args.dtype, args.calibration_seconds)
    known = {
        "pipeline": f"{type(pipe).__name__} ({work.name})",
        "checkpoint_sha256": checkpoint_sha256(model_folder(model)),
        "params": sum(parameter.numel() for parameter in pipe.unet.parameters()),
        "shape": list(pipe.sample_shape),
        "steps": args.steps,
        "guidance": 1.0,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": args.seed,
    }
    cases = [{**known, **measure_pair(pipe, name, peer, work, batch, args, calibration)} for batch in args.batches]
    env["load_after"] = machine_load()
    result = {
        **origin(),
        "env": env,
        "calibration": calibration,
        "settings": {"model": model, "peer": name, "tolerance": args.tolerance, "pair_budget_s": args.budget},
        "cases": cases,
    }
    write_result(output, result)
    text = f"{timed_markdown(result)}\n{overhead_markdown(cases)}\n"
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def peer_of(pipe: Any) -> tuple[str, Callable[[list[torch.Generator], Sequence[int], int], Tensor]]:
    """Name of the peer, and a function (generators, labels, steps) -> images (B, C, S, S) in [0, 1].

    Raises:
        InvalidInputError: diffusers has no pipeline for the scheduler of a model without classes.
    """
    # The peer's own scheduler: both keep state.
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    if pipe.class_names:
        return f"hand-written loop ({type(scheduler).__name__})", hand_written(pipe.unet, scheduler)
    if not isinstance(scheduler, DDIMScheduler):
        raise InvalidInputError(
            f"scheduler: DDIMPipeline needs a DDIMScheduler, but the model has a {type(scheduler).__name__}."
        )
    plain = DDIMPipeline(pipe.unet, scheduler)
    plain.set_progress_bar_config(disable=True)

    def generate(generators: list[torch.Generator], labels: Sequence[int], steps: int) -> Tensor:
        output: Any = plain(len(generators), generators, num_inference_steps=steps, output_type="np")
        return torch.from_numpy(output.images).permute(0, 3, 1, 2)

    return "diffusers.DDIMPipeline", generate


def hand_written(unet: Any, scheduler: Any) -> Callable[[list[torch.Generator], Sequence[int], int], Tensor]:
    """Class-conditional sampling as one writes it with diffusers alone."""
    size = unet.config["sample_size"]

    @torch.no_grad()
    def generate(generators: list[torch.Generator], labels: Sequence[int], steps: int) -> Tensor:
        shape = (len(generators), unet.config["in_channels"], size, size)
        image = randn_tensor(shape, generators, unet.device, unet.dtype)
        classes = torch.tensor(labels, device=unet.device)
        scheduler.set_timesteps(steps, device=unet.device)
        image = image * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            prediction = unet(scheduler.scale_model_input(image, timestep), timestep, class_labels=classes).sample
            image = scheduler.step(prediction, timestep, image).prev_sample
        return (image / 2 + 0.5).clamp(0, 1)

    return generate


def measure_pair(
    pipe: Any,
    name: str,
    peer: Callable[[list[torch.Generator], Sequence[int], int], Tensor],
    work: Work,
    batch: int,
    args: argparse.Namespace,
    calibration: dict[str, float],
) -> dict[str, Any]:
    """One case: our times, and the peer's beside them."""
    call = make_call(pipe, work, batch)
    generators = [torch.Generator() for _ in range(batch)]
    labels = [index % max(len(pipe.class_names), 1) for index in range(batch)]

    def before() -> None:
        call.before()
        for index, generator in enumerate(generators):
            generator.manual_seed(work.seed + index)

    def ours() -> Tensor:
        images = as_tensor(call.run())
        assert images is not None
        return images

    def theirs() -> Tensor:
        return peer(generators, labels, args.steps)

    load_before = machine_load()
    pair = compare_runs(
        ours,
        theirs,
        tolerance=args.tolerance,
        device=work.device,
        before=before,
        warmup=args.warmup,
        min_pairs=args.repeats,
        max_pairs=max(args.repeats, 200),
        budget_s=args.budget,
    )
    load_after = machine_load()
    times, outside = time_inside(ours, before, pipe.unet, work.device)
    before()
    case = figures(pair.ours, batch, work.dtype, calibration, len(times), count_flops(ours))
    say(f"batch {batch}: time / peer {verdict(pair.ratio_p50, pair.ratio_ci95)}")
    return {
        "id": f"peer/{work.name}/b{batch}/s{args.steps}",
        **case,
        "noisy": pair.noisy,
        "network_s": network_seconds(times),
        "load_before": load_before,
        "load_after": load_after,
        "peer": {
            "name": name,
            "version": diffusers.__version__,
            "p50": statistics.median(pair.peer.timings_s),
            "timings_s": pair.peer.timings_s,
            "ratio_p50": pair.ratio_p50,
            "ratio_ci95": list(pair.ratio_ci95),
            "max_abs_diff": pair.max_abs_diff,
            "extra_s": statistics.median(pair.extra_s),
            "extra_ci95": list(bootstrap_ci(pair.extra_s)),
            "outside_share": outside,
            "first_call_extra_s": times[0] - statistics.median(times),
        },
    }


def time_inside(
    run: Callable[[], Any], before: Callable[[], None], network: torch.nn.Module, device: str
) -> tuple[list[float], float]:
    """Seconds of each call of the network, and the share of a run's time outside it.

    Both are of one run, the middle one of three by that share, so that drift between runs cannot pass for overhead.
    """
    found = []
    for _ in range(3):
        before()
        start = time.perf_counter()
        times = network_times(run, network, device)
        wall = time.perf_counter() - start
        found.append((1 - (network_seconds(times) or 0.0) / wall, times))
    share, times = sorted(found, key=lambda pair: pair[0])[1]
    return times, share


def overhead_markdown(cases: Sequence[dict[str, Any]]) -> str:
    """Where the time goes that is not the network's."""
    header = ("batch", "ours, ms", "peer, ms", "denoiser, ms", "ours outside it", "ours - peer, ms", "first call, ms")
    rows = []
    for case in cases:
        peer = case["peer"]
        low, high = (1e3 * end for end in peer["extra_ci95"])
        rows.append(
            [
                f"{case['batch']}{' (noisy)' if case['noisy'] else ''}",
                f"{1e3 * case['p50']:.1f}",
                f"{1e3 * peer['p50']:.1f}",
                f"{1e3 * case['network_s']:.1f}",
                f"{100 * peer['outside_share']:.1f} %",
                f"{1e3 * peer['extra_s']:.1f} [{low:.1f}, {high:.1f}]",
                f"{1e3 * peer['first_call_extra_s']:.1f}",
            ]
        )
    return "\n\n".join(
        [
            f"Peer: {cases[0]['peer']['name']}, diffusers {cases[0]['peer']['version']}; largest difference of any "
            f"pixel {max(case['peer']['max_abs_diff'] for case in cases):.1e}.",
            markdown_table(header, rows),
            "Denoiser: calls x the median time of one; the share outside it is of the same run. First call: what the "
            "first call of the denoiser takes beyond "
            "the median one; our pipelines count operations in it.",
        ]
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"built-in name or folder (default: that of {TASK})")
    parser.add_argument("--steps", type=positive, default=50, help="sampling steps (default: %(default)s)")
    parser.add_argument("--batches", type=growing, default=[1, 8], help="default: 1,8")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="largest difference of any pixel (default: %(default)g)"
    )
    add_machine_options(parser)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/peer-NAME.json")
    return parser


if __name__ == "__main__":
    main()
