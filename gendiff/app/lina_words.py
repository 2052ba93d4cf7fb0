"""An intervention as people type it, and in words."""

from __future__ import annotations

from gendiff.pipelines.registry import suggest
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import PARAMETERS, WarpSpec

WORDS = ("auto", "off")
WARPS = {parameter: name for name, (parameter, _, _) in PARAMETERS.items()}
"""Name of a warp by that of its parameter, which is what is typed."""
STRENGTHS = ("lam", "start", "stop", *WARPS, "u_c", "omega", "alpha.FACTOR")
FACTOR = "alpha."


def parse_intervention(text: str) -> str | Intervention:
    """`"lam=1,stop=0.4,kappa=2,alpha.side=0.5"` as an `Intervention`; "auto" and "off" stay words.

    lam: contrast; start and stop: the window; kappa, gamma or beta: a Moebius, power or split warp, with omega its
    blend and u_c the knee of a split; alpha.FACTOR: the prompt along a causal factor.

    Raises:
        ValueError: an unknown name, a name twice, no number, or a value outside its range.
    """
    if text in WORDS:
        return text
    values: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",")):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"--intervention must be auto, off or strengths as lam=1,stop=0.4, got {text!r}.")
        _check_name(name)
        if name in values:
            raise ValueError(f"--intervention says {name} twice, got {text!r}.")
        try:
            values[name] = float(number)
        except ValueError:
            raise ValueError(f"--intervention {part!r}: {number!r} is not a number.") from None
    alpha = {name.removeprefix(FACTOR): value for name, value in values.items() if name.startswith(FACTOR)}
    default = Intervention.window
    window = (values.get("start", default[0]), values.get("stop", default[1]))
    return Intervention(alpha, values.get("lam", 0.0), window=window, warp=_warp(values))


def intervention_words(one: Intervention) -> str:
    """What an intervention does, in plain text, such as "contrast 1.5 while s > 0.4, kappa = 2"."""
    if one.is_identity:
        return "none"
    parts = [f"contrast {one.lam:.2g}"] if one.lam else []
    parts += [f"prompt {value:+.2g} along {name}" for name, value in one.alpha.items() if value]
    parts += [f"energy {one.rho:.2g}"] if one.rho else []
    if parts:
        start, stop = one.window
        parts[-1] += f" while {f'{start:.2g} >= ' if start < 1 else ''}s > {stop:.2g}"
    if not one.warp.is_identity:
        parts.append(f"{one.warp.name} warp, {PARAMETERS[one.warp.name][0]} = {one.warp.parameter:.3g}")
    return ", ".join(parts)


def _check_name(name: str) -> None:
    if name == "rho":
        raise ValueError(
            "--intervention has no 'rho': it needs an energy to steer down, which is a function in Python."
        )
    if name not in STRENGTHS[:-1] and not (name.startswith(FACTOR) and name != FACTOR):
        raise ValueError(f"--intervention has {name!r}; {suggest(name, STRENGTHS)}")


def _warp(values: dict[str, float]) -> WarpSpec:
    given = [name for name in WARPS if name in values]
    if len(given) > 1:
        raise ValueError(f"--intervention has {' and '.join(given)}, choose one: a run has one warp.")
    for name, allowed in (("omega", tuple(WARPS)), ("u_c", ("beta",))):
        if name in values and not set(given) & set(allowed):
            raise ValueError(f"--intervention: {name} needs {' or '.join(allowed)}.")
    if not given:
        return WarpSpec()
    more = {name: values[name] for name in ("u_c", "omega") if name in values}
    return WarpSpec(WARPS[given[0]], values[given[0]], **more)
