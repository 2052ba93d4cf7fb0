"""The choices a rollout follows, checked against the model before any work starts."""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from gendiff.samplers.inversion import EDICTInverseScheduler, EDICTScheduler, FixedPointInverseScheduler

UseCache = bool | Literal["window"]
SUPPORTED = (
    "one of diffusers that walks one tensor by step(model_output, timestep, sample), such as "
    "FlowMatchEulerDiscreteScheduler, DDIMScheduler, DDPMScheduler or DPMSolverMultistepScheduler"
)
PAIRED = (EDICTScheduler, EDICTInverseScheduler, FixedPointInverseScheduler)
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclass(frozen=True)
class Rollout:
    """How a video is rolled out, the same for a whole session.

    Attributes:
        chunk_size: l, frames denoised together.
        context_frames: W, most clean frames that a chunk sees.
        sink_frames: first frames that stay among them for ever.
        num_inference_steps: N, steps of each chunk's walk.
        use_cache: True; False recomputes the whole history at every step, "window" its last W frames.
        refresh_every: rebuild the cache from the last W clean frames before each so many chunks; 0 = never.
        layout: of the cache, "dynamic" or "static".
        context_noise: standard deviation of noise added to finished frames as they become context.
    """

    chunk_size: int
    context_frames: int
    sink_frames: int
    num_inference_steps: int
    use_cache: UseCache
    refresh_every: int
    layout: str
    context_noise: float


def check_rollout(
    network: Any,
    scheduler: Any,
    chunk_size: int | None,
    context_frames: int | None,
    sink_frames: int,
    num_inference_steps: int,
    use_cache: UseCache,
    cache_refresh: str | int,
    layout: str,
    context_noise: float,
) -> Rollout:
    """The rollout that the arguments of `CausalVideoPipeline` describe; None means as in training.

    Raises:
        ValueError: an argument is out of range, or does not fit the model or the others.
    """
    config = network.config
    chunk = config["chunk_size"] if chunk_size is None else check_whole("chunk_size", chunk_size, 1)
    window = config["context_frames"] if context_frames is None else check_whole("context_frames", context_frames, 1)
    sinks = check_whole("sink_frames", sink_frames, 0)
    _check_chunk(config, chunk)
    _check_window(config, window, chunk, network.time_period)
    if sinks >= window:
        raise ValueError(
            f"sink_frames must be below context_frames = {window}, or no other frame is kept; got {sinks}."
        )
    if sinks and config["pos"] == "cyclic":
        raise ValueError(
            f"sink_frames must be 0 with cyclic positions, got {sinks}: what a sink says of its place is part of its "
            "cached keys and would repeat with the cycle."
        )
    if not isinstance(use_cache, bool) and use_cache != "window":
        raise ValueError(f"use_cache must be True, False or 'window', got {use_cache!r}.")
    if use_cache is True and config["attention_mode"] == "full":
        raise ValueError("use_cache must be False or 'window': bidirectional attention cannot be cached, got True.")
    if layout not in ("dynamic", "static"):
        raise ValueError(f"layout must be dynamic or static, got {layout!r}.")
    refresh = _refresh(cache_refresh)
    if refresh and use_cache is not True:
        raise ValueError(f"cache_refresh must be 'never' without a cache, got {cache_refresh!r}.")
    if not (_is_number(context_noise) and 0 <= context_noise <= 1):
        raise ValueError(f"context_noise must be a standard deviation from 0 to 1, got {context_noise!r}.")
    _check_scheduler(scheduler)
    steps = check_whole("num_inference_steps", num_inference_steps, 1, scheduler.config["num_train_timesteps"])
    return Rollout(chunk, window, sinks, steps, use_cache, refresh, layout, float(context_noise))


def check_num_frames(num_frames: Any, given: int) -> int:
    """`num_frames`, which counts given frames.

    Raises:
        ValueError: not a whole number above `given`.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames <= given:
        raise ValueError(
            f"num_frames counts the {given} given frames and must be a whole number of at least {given + 1}, got "
            f"{num_frames!r}."
        )
    return num_frames


def check_guidance(guidance_scale: Any, conditional: bool) -> float:
    """`guidance_scale` as a float.

    Raises:
        ValueError: negative or not finite, or other than 1 with nothing to guide to.
    """
    if not (_is_number(guidance_scale) and guidance_scale >= 0):
        raise ValueError(f"guidance_scale must be finite and at least 0, got {guidance_scale!r}.")
    if guidance_scale != 1 and not conditional:
        raise ValueError(f"guidance_scale must be 1 without a class or a text to guide to, got {guidance_scale:g}.")
    return float(guidance_scale)


def check_groups(name: str, count: int, first: int | None, network: Any) -> None:
    """Raise ValueError unless `count` clean frames can be grouped as block-causal attention was trained.

    Args:
        name: of the frames, for the message.
        count: frames.
        first: how many of them are a group apart from whole chunks: 0 behind other frames; None where they begin the
            video, whose first chunk has a length of its own.
        network: says how it was trained.
    """
    chunk = network.config["chunk_size"]
    apart: int = network.first_chunk_size % chunk if first is None else first
    if network.config["attention_mode"] != "block_causal" or (count - apart) % chunk == 0:
        return
    low = apart + (count - apart) // chunk * chunk
    near = " or ".join(str(value) for value in (low, low + chunk) if value > 0)
    raise ValueError(
        f"{name} must be {f'{apart} + ' if apart else ''}a multiple of {chunk} in block_causal attention, such as "
        f"{near}, got {count}."
    )


def _check_chunk(config: Any, chunk: int) -> None:
    trained = config["chunk_size"]
    if chunk != trained and config["attention_mode"] == "block_causal":
        raise ValueError(
            f"chunk_size must be {trained}, as in training: in block_causal attention what is cached depends on it; "
            f"got {chunk}."
        )
    if chunk > trained:
        warnings.warn(f"chunk_size {chunk} is above {trained} of training; quality is not known.", stacklevel=5)


def _check_window(config: Any, window: int, chunk: int, period: int | None) -> None:
    trained = config["context_frames"]
    if period is not None and window + chunk > period:
        raise ValueError(
            f"context_frames must be at most {period - chunk}: with chunk_size {chunk} more would not fit into the "
            f"cycle of {period} positions, got {window}."
        )
    if window > trained:
        warnings.warn(
            f"context_frames {window} is above the {trained} of training; quality is not known.", stacklevel=5
        )


def _refresh(value: str | int) -> int:
    named = {"never": 0, "always": 1}
    if isinstance(value, str) and value in named:
        return named[value]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"cache_refresh must be 'never', 'always' or a number of chunks of at least 1, got {value!r}.")
    return value


def _check_scheduler(scheduler: Any) -> None:
    name = type(scheduler).__name__
    step = getattr(scheduler, "step", None)
    takes = list(inspect.signature(step).parameters)[:3] if callable(step) else []
    single = takes == ["model_output", "timestep", "sample"] and not isinstance(scheduler, PAIRED)
    if not single or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(f"scheduler must be {SUPPORTED}, got {name}.")
    config = scheduler.config
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction not in PREDICTIONS:
        raise ValueError(f"scheduler.prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}.")
    variance = config.get("variance_type")
    if str(variance).startswith("learned"):
        raise ValueError(f"scheduler.variance_type must be fixed, as the network predicts none, got {variance!r}.")
    if config.get("use_dynamic_shifting"):
        raise ValueError("scheduler.use_dynamic_shifting must be False: it shifts by the number of tokens, got True.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value`, or a ValueError that names it unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limit}, got {value!r}.")
    return value
