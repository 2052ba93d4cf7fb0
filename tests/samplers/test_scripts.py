"""The scripts of the `samplers` folder run, and the scheduler they teach is as good as they say."""

import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.oracles.markov_tokens import MarkovTokens
from gendiff.samplers.loop import sample
from gendiff.samplers.masked import MaskedState

# diffusers hands torch tensors to numpy functions, which numpy 2 comments on.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

FOLDER = Path(__file__).parents[2] / "samplers"
TINY = {
    "bands": ["--samples", "4", "--stages", "1", "2", "3", "5"],
    "causal_contrast": ["--steps", "4", "--samples", "8", "--scales", "1", "3", "--strengths", "1"],
    "convergence": ["--steps", "4", "8"],
    "guidance": ["--steps", "4", "--samples", "8", "--scales", "1", "3"],
    "inversion": ["--steps", "4", "8", "--samples", "8"],
    "recap": ["--samples", "4", "--tokens", "8", "--full", "2", "3"],
    "rollout": ["--samples", "8", "--frames", "9"],
    "warps": ["--steps", "4", "8", "--samples", "8", "--kappas", "1", "2"],
    "write_your_own": ["--steps", "4", "8"],
}


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    return runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")


def test_every_script_is_tried_and_listed():
    assert sorted(file.stem for file in FOLDER.glob("*.py")) == sorted(TINY)
    table = (FOLDER / "README.md").read_text()
    assert all(f"`{script}.py`" in table for script in TINY)


@pytest.mark.parametrize("script", TINY)
def test_script_draws_a_picture(script, tmp_path, monkeypatch):
    out = tmp_path / "new folder" / "picture.png"
    run(script, monkeypatch, "--out", str(out), *TINY[script])
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100


@pytest.mark.parametrize("script", TINY)
def test_script_explains_itself(script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(script, monkeypatch, "--help")
    assert end.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_scripts_are_short():
    assert all(len(file.read_text().splitlines()) < 80 for file in FOLDER.glob("*.py"))


def test_the_taught_scheduler_is_of_second_order():
    scheduler = runpy.run_path(str(FOLDER / "write_your_own.py"))["FlowAdamsBashforthScheduler"]()
    data = Gaussian(torch.tensor([1.0, -2.0]).double(), torch.tensor([[1.0, 0.3], [0.3, 0.2]]).double())
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (80, 160):
        scheduler.set_timesteps(steps)
        reached = sample(exact_predictor(data, scheduler), scheduler, noise, progress=False)
        errors.append((reached - data.transport(noise, (0.0, 1.0))).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_the_bands_of_every_spacing_leave_out_what_they_should():
    script = runpy.run_path(str(FOLDER / "bands.py"))
    images = script["maps"](2000, 7, 0)
    for spacing in script["SPACINGS"]:
        measured, exact = script["missing"](images, script["band_radii"](spacing, (1, 2, 3, 4, 5, 7)))
        assert measured.tolist() == pytest.approx([share.item() for share in exact], abs=0.01)
        assert exact[0] > 0.8 and measured[-1] < 1e-12


def test_light_steps_with_frozen_context_lie_between_none_and_perfect_ones():
    script = runpy.run_path(str(FOLDER / "recap.py"))
    args = SimpleNamespace(tokens=24, samples=300, seed=0)
    chain = MarkovTokens(torch.full((4,), 0.25), script["MOVES"], num_tokens=24)
    frozen, decode = script["frozen"](chain), script["decode"]
    base, stale, perfect = (
        decode(chain.predict, args, 4, 0),
        decode(frozen, args, 8, 1),
        decode(chain.predict, args, 8, 1),
    )
    # 300 * 23 pairs of neighbours, of which 0.1 to 0.2 differ: a standard error of at most 0.005.
    assert base[1] > stale[1] + 0.02 and stale[1] > perfect[1] + 0.02
    assert base[0] == 4 and 4 < stale[0] == perfect[0] < 8
    # With nothing revealed since the full step, nothing is stale.
    hidden = torch.rand(5, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    group, nothing = hidden.int().topk(3).indices, torch.empty(5, 0, dtype=torch.long)
    state = MaskedState(torch.zeros(5, 24, dtype=torch.long), hidden, nothing, nothing, nothing[..., None])
    full, light = frozen(state, None), frozen(state._replace(group=group), None)
    assert torch.allclose(light, full.gather(1, group[..., None].expand(-1, -1, 4)), atol=1e-12)
