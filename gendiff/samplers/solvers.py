"""Schedulers of diffusers by short names, for a model whose own scheduler says how it was trained."""

from __future__ import annotations

import difflib
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    # Where the cosine schedule is all but pure noise, log(SNR) falls without bound and would swallow most of the steps.
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "lambda_min_clipped": -5.1}),
}
"""Name -> class and the arguments that differ from its defaults."""


def solver(name: str, trained: Any) -> Any:
    """The scheduler called `name`, with the noise levels and the prediction type of `trained`.

    Args:
        name: one of `SOLVERS`: "ddim" (Song et al. 2021) or "dpm-solver++" (Lu et al. 2022, second order, multistep).
        trained: the model's own scheduler.

    Raises:
        ValueError: unknown name; the nearest one is given.
    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(str(name), SOLVERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"scheduler must be one of {', '.join(SOLVERS)}, got {name!r}.{hint}")
    scheduler, arguments = SOLVERS[name]
    return scheduler.from_config(trained.config, **arguments)
