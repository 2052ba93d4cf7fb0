"""Quality and seconds of all ways to decode a model's tokens: what is missing, and the result file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from arguments import say
from calls import Work, load
from masked_plans import Plan, plans_of
from masked_rows import Job, jobs_of
from masked_tables import markdown, plot
from masked_times import ROW as TIMES
from masked_times import times_case
from next_frequency_scores import check_shape
from next_frequency_yardstick import EXTRACTORS, make_yardstick
from noise import load as machine_load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import read_result, write_result

from gendiff.data import load_dataset
from gendiff.files import write_whole
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline


def measure_quality(args: argparse.Namespace) -> Path:
    """Measure what is missing and write the report; the path of the result.

    Raises:
        ValueError, OSError, ImportError: an argument, model or data set cannot be used.
    """
    folder = pipeline_folder(args.model)
    pipe: Any = open_model(folder, args.device)
    root = {"root": args.root} if args.data == "fashion-mnist-full" else {}
    test, train = (load_dataset(args.data, split=split, **root) for split in ("test", "train"))
    check_shape(pipe, test.images, len(test.classes))
    plans = chosen_plans(args, pipe.continuous)
    sha256 = checkpoint_sha256(folder)
    jobs = jobs_of(args, pipe, sha256, plans, train)
    settings = settings_of(args, len(test))
    output = args.out / f"masked-generation-{args.name}.json"
    cases = kept_cases(output, settings, jobs, plans, sha256)
    env = environment(args.device, "float32")
    have = {(case["row"], case["seed"]) for case in cases}
    missing = [key for key in jobs if key not in have]
    yardstick = None
    if missing:
        yardstick = make_yardstick(test.images, test.labels, args.num, args.device, args.allow_small_n)

    def write(case: dict[str, Any] | None) -> None:
        if case is not None:
            cases.append(case)
        order = {key: position for position, key in enumerate(jobs)}
        cases.sort(key=lambda case: order.get((case["row"], case["seed"]), len(order)))
        env["load_after"] = machine_load()
        write_result(output, {**origin(), "env": env, "settings": settings, "cases": cases})

    # Times first: what is sampled after them may take hours.
    if (TIMES, 0) not in have:
        say("times of all ways")
        write(times_case(args, pipe, plans, sha256))
    say(f"about {_forecast(cases, missing, plans, args.num) / 60:.0f} minutes of samples to come, if none is kept")
    for row, seed in missing:
        assert yardstick is not None
        say(f"{row}, seed {seed}")
        fingerprint, measure = jobs[row, seed]
        write({"row": row, "seed": seed, "fingerprint": fingerprint, **measure(yardstick)})
    write(None)
    result = read_result(output)
    assert result is not None
    plot(result, output.with_suffix(""))
    text = markdown(result, output.with_suffix(".png").name)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def _forecast(
    cases: list[dict[str, Any]], missing: list[tuple[str, int]], plans: Mapping[str, Plan], num: int
) -> float:
    """Seconds that samples of missing rows will take, the baseline's aside."""
    cells = [cell for case in cases if case["row"] == TIMES for cell in case["cells"]]
    seconds = {cell["of"]: cell["value"] for cell in cells if cell["metric"] == "seconds"}
    return num * sum(seconds.get(row, 0.0) for row, _ in missing if row in plans)


def chosen_plans(args: argparse.Namespace, continuous: bool) -> dict[str, Plan]:
    """The ways to decode that were asked for.

    Raises:
        ValueError: a row that there is not.
    """
    plans = plans_of(args.bounds, continuous)
    for row in args.rows or ():
        if row not in plans:
            raise ValueError(f"--rows has {row!r}; known: {', '.join(plans)}.")
    return {row: plan for row, plan in plans.items() if args.rows is None or row in args.rows}


def kept_cases(
    path: Path, settings: dict[str, Any], jobs: Mapping[tuple[str, int], Job], plans: Mapping[str, Plan], sha256: str
) -> list[dict[str, Any]]:
    """Cases of an earlier run that still hold: same settings, same weights, and times of all ways to decode."""
    old = read_result(path)
    if old is None or old["settings"] != settings:
        return []

    def holds(case: dict[str, Any]) -> bool:
        if case["row"] == TIMES:
            timed = {cell["of"] for cell in case["cells"]}
            return case["fingerprint"] == sha256 and case["threads"] == torch.get_num_threads() and set(plans) <= timed
        key = (case["row"], case["seed"])
        return key in jobs and jobs[key][0] == case["fingerprint"]

    return [case for case in old["cases"] if holds(case)]


def settings_of(args: argparse.Namespace, reference: int) -> dict[str, Any]:
    """What every case depends on, as JSON has it."""
    settings = {
        "model": Path(args.model).name,
        "data": args.data,
        "reference": reference,
        "num": args.num,
        "batch_size": args.batch_size,
        "guidance": args.guidance,
        "baseline": f"{args.baseline}, DDIM, {args.baseline_steps} steps",
        "extractors": EXTRACTORS,
    }
    return json.loads(json.dumps(settings))


def pipeline_folder(name: str) -> Path:
    """The folder of a pipeline by built-in name or path; of a run, its final one.

    Raises:
        ValueError, OSError: there is none.
    """
    path = Path(name)
    final = path / "final"
    return final if (final / "model_index.json").is_file() else model_folder(name)


def open_model(folder: Path, device: str) -> MaskedGenerationPipeline:
    """The pipeline, in float32.

    Raises:
        ValueError, OSError: it cannot be loaded, or is something else.
    """
    pipe = load(Work(model=str(folder), device=device))
    if not isinstance(pipe, MaskedGenerationPipeline):
        raise ValueError(f"{folder} holds a {type(pipe).__name__}; a MaskedGenerationPipeline is needed.")
    return pipe
