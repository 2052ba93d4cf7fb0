"""What command lines of benchmarks share: kinds of numbers, and progress on standard error."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def run_or_explain(run: Callable[[argparse.Namespace], Any], args: argparse.Namespace, parser: Any) -> Any:
    """`run(args)`; what the person who typed them can mend is told in a line, with exit code 2."""
    try:
        return run(args)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if natural(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return int(text)


def seconds(text: str) -> float:
    """A finite time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def growing(text: str) -> list[int]:
    """Numbers that grow, from "1,2,4"."""
    found = [positive(part) for part in text.split(",")]
    if sorted(set(found)) != found:
        raise argparse.ArgumentTypeError(f"must grow, like 1,2,4; got {text!r}")
    return found


def device(text: str) -> str:
    """A device that works here."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used on this machine: {reason}") from error
    return text


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--device, --threads, --seed, --warmup, --repeats, --budget."""
    options: tuple[tuple[str, Any, Any, str], ...] = (
        ("--device", device, "cpu", "default: %(default)s"),
        ("--threads", natural, 0, "of torch; 0 = as torch chooses (default)"),
        ("--seed", natural, 0, "of the first image (default: %(default)s)"),
        ("--warmup", natural, 3, "runs before the clock (default: %(default)s)"),
        ("--repeats", positive, 10, "timed runs, at least (default: %(default)s)"),
        ("--budget", seconds, 60.0, "seconds of timed runs a case, which end it early (default: %(default)g)"),
        ("--calibration-seconds", seconds, 1.0, "for each test of the machine's own speed (default: %(default)g)"),
    )
    for name, kind, default, words in options:
        parser.add_argument(name, type=kind, default=default, help=words)


def set_threads(threads: int) -> None:
    """Threads of one operation (0 = leave), and one for operations side by side."""
    if threads:
        torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:  # too late in this process; eager code on a CPU hardly uses them
            say("the number of inter-operation threads could not be set to 1")


def say(words: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)
