"""A point that a session can return to, and how it knows that the point is one of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .causal_video_past import PastSnapshot
from .causal_video_rollout import Rollout

Generators = torch.Generator | list[torch.Generator]


@dataclass(frozen=True)
class SessionSnapshot:
    """A point that a session can return to. It shares memory with the session until that writes again.

    Attributes:
        fingerprint: of the model and of the choices of the session; only an equal one can be restored.
        past: finished frames, caches, conditions and guidance.
        counts: index of the next frame, and number of chunks so far.
        whole: whether the last chunk was whole.
        random: state of each generator.
    """

    fingerprint: str
    past: PastSnapshot
    counts: tuple[int, int]
    whole: bool
    random: tuple[Tensor, ...]


def fingerprint(network: Any, scheduler: Any, rollout: Rollout, **others: Any) -> str:
    """16 hex digits of what the future of a session follows from, besides its past: network, scheduler, choices.

    Of the weights a few of each tensor are read, which tells trained networks apart and costs one transfer.

    Args:
        network: a model of diffusers.
        scheduler: a scheduler of diffusers.
        rollout: the choices.
        others: what else must be equal, anything with a `str`.
    """
    made_of = {
        "model": [type(network).__name__, _plain(network.config)],
        "scheduler": [type(scheduler).__name__, _plain(scheduler.config)],
        "rollout": asdict(rollout),
        **others,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode())
    weights = [weight.detach().flatten()[:8].float() for weight in network.parameters() if not weight.is_meta]
    if weights:
        digest.update(torch.cat(weights).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def check_generator(generator: Generators | None, batch: int) -> Generators:
    """The caller's, or a new one, so that a snapshot can put its state back.

    Raises:
        ValueError: not generators, or not one for each of `batch` videos.
    """
    if generator is None:
        return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    several = list(generator) if isinstance(generator, list | tuple) else [generator]
    if wrong := [one for one in several if not isinstance(one, torch.Generator)]:
        kind = type(wrong[0]).__name__
        raise ValueError(f"generator must be a torch.Generator, or one for each of {batch} videos, got {kind}.")
    if not isinstance(generator, list | tuple):
        return generator
    if len(several) != batch:
        raise ValueError(f"generator must hold one generator for each of {batch} videos, got {len(several)}.")
    return several


def listed(generator: Generators) -> list[torch.Generator]:
    """One or several generators as a list."""
    return generator if isinstance(generator, list) else [generator]


def copied(generator: Generators) -> Generators:
    """Generators that will give the same numbers."""

    def copy(one: torch.Generator) -> torch.Generator:
        other = torch.Generator(one.device)
        other.set_state(one.get_state())
        return other

    return [copy(one) for one in generator] if isinstance(generator, list) else copy(generator)
