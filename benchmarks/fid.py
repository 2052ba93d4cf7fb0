"""How good are the images, and how much better do more steps make them? Scores against network calls.

python benchmarks/fid.py --steps 10,20,50 --num 2000 --extractors lite0-112,fmnist-cnn \\
    --reference dataset:fashion-mnist-full:test

Images of each number of steps are made once and scored in the features of every extractor. Every finished number of
steps is written at once; the same command goes on where it stopped. Writes results/fid-NAME.json, a report (.md),
scores against network calls (.png, .svg, .csv) and distance against the number of images (-images.png, .svg, .csv).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import device, growing, natural, positive, run_or_explain, say
from calibration import DTYPES
from calls import Work, load, option
from fid_report import plot_against_calls, plot_against_images, quality_markdown
from noise import load as machine_load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import read_result, write_result
from torch import Tensor

from gendiff.data.image_source import ImageSource
from gendiff.data.pipeline_source import PipelineSource
from gendiff.errors import MetricWarning
from gendiff.files import write_whole
from gendiff.metrics.evaluate import evaluate
from gendiff.pipelines.registry import get_task


class KeptSource(ImageSource):
    """All images of a pipeline, made once and kept for several extractors; says of itself what the pipeline says."""

    kind = PipelineSource.kind

    def __init__(self, source: PipelineSource):
        super().__init__(source.name, source.resize)
        blocks = [
            source.read(range(start, min(start + source.block, len(source))))
            for start in range(0, len(source), source.block)
        ]
        self._images = torch.cat(blocks)
        self._source = source
        self.notes = list(source.notes)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, indices: Sequence[int]) -> Tensor:
        return self._images[list(indices)]

    def labels(self, count: int) -> Tensor | None:
        return self._source.labels(count)

    def facts(self) -> dict[str, Any]:
        return self._source.facts()

    def where(self, index: int) -> str:
        return self._source.where(index)

    def stats(self) -> dict[str, Any]:
        return self._source.stats()


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Make and score what is missing, then write the report.

    Raises:
        ValueError, OSError, ImportError: an argument, model or extractor cannot be used.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    task = args.task or "image-generation"
    work = Work(
        args.task, args.model, None, args.device, args.dtype, seed=args.seed, options=dict(map(option, args.set))
    )
    model = args.model or get_task(task).checkpoint
    pipe = load(work)
    output = args.output or Path(__file__).parent / "results" / f"fid-{work.name}.json"
    settings = {
        "model": str(model),
        "checkpoint_sha256": checkpoint_sha256(model_folder(str(model))),
        "reference": args.reference,
        "extractors": args.extractors,
        "metrics": args.metrics,
        "num": args.num,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "labels": labels_of(pipe, args.labels),
        "options": dict(work.options),
        "dtype": args.dtype,
        "allow_small_n": args.allow_small_n,
    }
    env = environment(args.device, args.dtype)
    old = read_result(output)
    usable = old is not None and not args.force and old.get("settings") == settings
    if old is not None and not usable and not args.force:
        raise ValueError(f"{output} holds scores of other settings: name another --output, or give --force.")
    result: dict[str, Any] = {
        **origin(),
        "env": env,
        "settings": settings,
        "reports": old["reports"] if old is not None and usable else [],
        "cases": old["cases"] if old is not None and usable else [],
    }
    for steps in args.steps:
        if any(case["steps"] == steps for case in result["cases"]):
            say(f"{steps} steps: known")
            continue
        reports, cases = measure(pipe, steps, args, settings)
        result["reports"] += reports
        result["cases"] = sorted([*result["cases"], *cases], key=lambda case: case["steps"])
        env["load_after"] = machine_load()
        write_result(output, result)
    write_result(output, result)
    figures = []
    if {"fd", "fd_infinity"} & set(args.metrics):
        figures.append(output.with_suffix(".png"))
        plot_against_calls(result, figures[-1])
    if "fd_infinity" in args.metrics:
        figures.append(output.with_name(f"{output.stem}-images.png"))
        plot_against_images(result, figures[-1])
    text = quality_markdown(result, [figure.name for figure in figures])
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def measure(
    pipe: Any, steps: int, args: argparse.Namespace, settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Reports and cases of one number of steps."""
    samples = KeptSource(
        PipelineSource(
            pipe,
            args.num,
            args.seed,
            args.batch_size,
            settings["labels"],
            threads=args.threads or torch.get_num_threads(),
            num_inference_steps=steps,
            **settings["options"],
        )
    )
    cost = samples.stats()
    nfe = cost["network_calls"] / cost["calls"]
    say(f"{steps} steps: {args.num} images in {cost['seconds']:.0f} s")
    reports, cases = [], []
    for name in args.extractors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetricWarning)  # they stay in the report, and are printed from there
            report = evaluate(
                samples,
                args.reference,
                args.metrics,
                name,
                seed=args.seed,
                device=args.device,
                allow_small_n=args.allow_small_n,
                progress=False,
            )
        reports.append({"steps": steps, **report.to_json()})
        for score in report.scores.values():
            say(f"{steps} steps: {score.label} {score.value:.4g}")
            cases.append(
                {
                    "id": f"{type(pipe).__name__}/{Path(settings['model']).name}/s{steps}/{name}/{score.name}",
                    "pipeline": type(pipe).__name__,
                    "checkpoint_sha256": settings["checkpoint_sha256"],
                    "steps": steps,
                    "nfe": nfe,
                    "scheduler": type(pipe.scheduler).__name__,
                    "seed": args.seed,
                    "sampling_s": cost["seconds"],
                    "quality": {
                        "metric": score.name,
                        "label": score.label,
                        "value": score.value,
                        "n": args.num,
                        "extractor": report.conditions["extractor"]["id"],
                        "ref": args.reference,
                        "floor": score.floor,
                        "better": score.better,
                        "details": score.details,
                    },
                }
            )
    return reports, cases


def labels_of(pipe: Any, asked: str) -> str | None:
    """How classes are chosen; None for a model without."""
    if asked == "auto":
        return "balanced" if getattr(pipe, "class_names", None) else None
    return None if asked == "none" else asked


def names(text: str) -> list[str]:
    """Names between commas, each once."""
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"must be different names with commas between, got {text!r}")
    return found


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="of gendiff (default: image-generation, unless --model is given)")
    parser.add_argument("--model", help="built-in name or folder, of gendiff or diffusers (default: the task's own)")
    parser.add_argument("--steps", type=growing, default=[10, 20, 50], help="default: 10,20,50")
    parser.add_argument("--num", type=positive, default=1000, help="images of each (default: %(default)s)")
    parser.add_argument("--reference", default="dataset:fashion-mnist:test", help="default: %(default)s")
    parser.add_argument("--extractors", type=names, default=["lite0-112", "fmnist-cnn"], help="lite0-112,fmnist-cnn")
    parser.add_argument(
        "--metrics",
        type=names,
        default=["fd", "fd_infinity", "kid", "prdc"],
        help="some of what gendiff.metrics.evaluate takes (default: fd,fd_infinity,kid,prdc)",
    )
    parser.add_argument(
        "--labels", choices=("auto", "balanced", "random", "none"), default="auto", help="of the images"
    )
    parser.add_argument("--allow-small-n", action="store_true", help="score fewer images than features, with a warning")
    parser.add_argument("--batch-size", type=positive, default=50, help="images at once (default: %(default)s)")
    parser.add_argument("--device", type=device, default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=natural, default=0, help="of torch; 0 = as torch chooses (default)")
    parser.add_argument("--seed", type=natural, default=0, help="of the first image (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a further argument of the call, as JSON"
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/fid-NAME.json")
    parser.add_argument("--force", action="store_true", help="score again what is known")
    return parser


if __name__ == "__main__":
    main()
