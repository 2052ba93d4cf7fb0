"""`gendiff sample lina`: plain and steered pictures as files, the verifier's word, one line for what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff import CausalContrast, Intervention, WarpSpec
from gendiff.cli import main
from gendiff.data.shadow_world import ShadowWorld
from gendiff.metrics.pap import pap_score

RED = "a tall red pole, low sun on the right, a plant near left"
BLUE = "a short blue pole, high sun on the left, a plant far right"
HOPS = {"height": 0, "colour": 0, "elevation": 0, "side": 0, "plant": 0}
HOPS |= {"shadow_dir": 1, "shadow_len": 1, "plant_lit": 2}


@pytest.fixture
def pipe(tiny_lina):
    return tiny_lina(gate=5.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lina") / "model"


@pytest.fixture
def model(folder, tiny_lina):
    """The folder of `pipe`, saved once: no test changes it."""
    if not folder.exists():
        tiny_lina(gate=5.0).save_pretrained(folder)
    return folder


def sample(*arguments) -> int:
    return main(["sample", "lina", *(str(argument) for argument in arguments)])


def images(out, way) -> torch.Tensor:
    """All pictures of one way, (N, 3, S, S) in [0, 1]."""
    paths = sorted((out / "images" / way).iterdir())
    assert [path.name for path in paths] == [f"{number:03d}.png" for number in range(len(paths))]
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in paths])


def drawn(pipe, prompts, count, seed=0, steps=3, **options) -> torch.Tensor:
    """What the pipeline itself draws."""
    noise = [torch.Generator().manual_seed(seed + i) for i in range(count * len(prompts))]
    asked = {"num_inference_steps": steps, "num_images_per_prompt": count, "generator": noise, "output_type": "pt"}
    return pipe(prompts, **asked, **options).images


def close(first, second) -> bool:
    return first.shape == second.shape and bool((first - second).abs().max() <= 0.51 / 255)


def record(out) -> dict:
    return json.loads((out / "run.json").read_text())


def test_both_ways_from_the_same_noise_and_what_the_verifier_says(model, pipe, tmp_path, capsys):
    out = tmp_path / "out"
    typed = ("--prompt", RED, "--prompt", BLUE, "--num-images", 2, "--steps", 3, "--guidance", 1.5, "--seed", 5)
    assert sample("--model", model, *typed, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "images",
        "pairs.png",
        "graph-000.svg",
        "graph-001.svg",
        "run.json",
    }
    for way, intervention in (("base", "off"), ("lina", "auto")):
        wanted = drawn(pipe, [RED, BLUE], 2, 5, guidance_scale=1.5, intervention=intervention)
        assert close(images(out, way), wanted), way
    assert not close(images(out, "base"), images(out, "lina"))

    run = record(out)
    assert run["task"] == "lina" and run["guidance_scale"] == 1.5 and run["versions"]["torch"]
    said = Intervention.from_dict(run["prompts"][0]["intervention"])
    assert said.lam == pytest.approx(8 * np.tanh(0.3), rel=1e-4) and said.warp.parameter > 1.3
    for i, prompt in enumerate((RED, BLUE)):
        one = run["prompts"][i]
        assert one["prompt"] == prompt and one["graph"]["prompt"] == prompt
        inside = sum(share > said.window[1] for share in one["schedule"]["lina"])
        assert one["nfe"] == {"base": 6, "lina": 6 + inside} and inside > 0
        assert one["schedule"]["base"][1] < one["schedule"]["lina"][1] < one["schedule"]["base"][0] == 1
    for way in ("base", "lina"):
        checks = ShadowWorld.check(2 * images(out, way) - 1, [RED, RED, BLUE, BLUE])
        found = [verdict for one in run["prompts"] for verdict in one["verdicts"][way]]
        assert [verdict["checks"] for verdict in found] == [
            {name: bool(passed[i]) for name, passed in checks.items()} for i in range(4)
        ]
        for score, values in pap_score(checks, HOPS).items():
            assert run["scores"][way][score] == pytest.approx(values.mean().item(), abs=1e-4)
    printed = capsys.readouterr().out
    assert f"{RED}: intervention: contrast 2.3 while s > 0.4, moebius warp, kappa = 1.38" in printed
    assert f"pairs.png and {len(list(out.rglob('*.*'))) - 1} more files in {out}" in printed


def test_a_picture_does_not_depend_on_how_many_are_drawn(model, tmp_path):
    for out, count in (("one", 1), ("many", 9)):
        assert (
            sample("--model", model, "--prompt", RED, "--num-images", count, "--steps", 2, "--out", tmp_path / out) == 0
        )
    for way in ("base", "lina"):
        assert close(images(tmp_path / "many", way)[:1], images(tmp_path / "one", way))
    # At most eight of a prompt are shown, each enlarged to 128 px.
    with Image.open(tmp_path / "many" / "pairs.png") as sheet, Image.open(tmp_path / "one" / "pairs.png") as narrow:
        assert sheet.width - narrow.width == 7 * (128 + 8) and sheet.height == narrow.height > 2 * 128


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lam=2", Intervention(lam=2.0)),
        ("lam=2,stop=0.6,start=0.95", Intervention(lam=2.0, window=(0.95, 0.6))),
        ("kappa=2", Intervention(warp=WarpSpec("moebius", 2.0))),
        ("gamma=1.5, omega=0.5", Intervention(warp=WarpSpec("power", 1.5, omega=0.5))),
        ("beta=0.6,u_c=0.4", Intervention(warp=WarpSpec("split", 0.6, u_c=0.4))),
        ("alpha.side=-0.5,stop=0", Intervention(alpha={"side": -0.5}, window=(1.0, 0.0))),
    ],
)
def test_strengths_by_hand(model, pipe, tmp_path, typed, meant):
    options = ("--prompt", RED, "--num-images", 1, "--steps", 4, "--intervention", typed)
    assert sample("--model", model, *options, "--out", tmp_path / "out") == 0
    assert close(images(tmp_path / "out", "lina"), drawn(pipe, [RED], 1, steps=4, intervention=meant))
    assert Intervention.from_dict(record(tmp_path / "out")["prompts"][0]["intervention"]) == meant


def test_a_projection_acts_where_the_contrast_does(model, pipe, tmp_path):
    options = ("--prompt", RED, "--num-images", 1, "--steps", 3, "--intervention", "lam=4")
    for name in ("orthogonal", "none"):
        assert sample("--model", model, *options, "--projection", name, "--out", tmp_path / name) == 0
    strong = Intervention(lam=4.0)
    contrast = CausalContrast("orthogonal", mask=pipe.grammar.contrast_mask(32, 32))
    wanted = drawn(pipe, [RED], 1, intervention=strong, contrast=contrast)
    assert close(images(tmp_path / "orthogonal", "lina"), wanted)
    assert close(images(tmp_path / "none", "lina"), drawn(pipe, [RED], 1, intervention=strong))
    assert not close(images(tmp_path / "none", "lina"), images(tmp_path / "orthogonal", "lina"))
    assert close(images(tmp_path / "none", "base"), images(tmp_path / "orthogonal", "base"))


def test_off_is_the_plain_model(model, tmp_path, capsys):
    typed = ("--prompt", RED, "--num-images", 2, "--steps", 2, "--intervention", "off")
    assert sample("--model", model, *typed, "--out", tmp_path / "out") == 0
    assert torch.equal(images(tmp_path / "out", "base"), images(tmp_path / "out", "lina"))
    assert record(tmp_path / "out")["prompts"][0]["nfe"] == {"base": 4, "lina": 4}
    assert "intervention: none" in capsys.readouterr().out


def test_the_graph_names_hops_values_and_what_the_contrast_sets(model, tmp_path):
    assert sample("--model", model, "--prompt", RED, "--num-images", 1, "--steps", 1, "--out", tmp_path / "out") == 0
    svg = ElementTree.parse(tmp_path / "out" / "graph.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{space}svg"
    texts = [text.text for text in svg.iter(f"{space}text")]
    assert "height = tall" in texts and "plant_lit" in texts
    assert [text for text in texts if text and text.startswith("hop")] == [
        "hop 0: said",
        "hop 1: follows",
        "hop 2: follows from that",
    ]
    nodes = [group for group in svg.iter(f"{space}g") if "node" in group.attrib["class"]]
    styles = {group.findtext(f"{space}text"): group.attrib["class"] for group in nodes}
    assert "set" in styles["side = right"] and "follows" in styles["plant_lit"] and "set" not in styles["shadow_len"]


def test_a_prompt_means_the_same_however_it_is_typed(model, tmp_path):
    typed = "A Tall red  pole, low sun on the right, a plant near left."
    for out, prompt in (("plain", RED), ("typed", typed)):
        assert (
            sample("--model", model, "--prompt", prompt, "--num-images", 1, "--steps", 1, "--out", tmp_path / out) == 0
        )
    plain, other = (record(tmp_path / out) for out in ("plain", "typed"))
    assert plain["prompts"] == other["prompts"] and other["arguments"]["prompt"] == [typed]
    assert torch.equal(images(tmp_path / "plain", "lina"), images(tmp_path / "typed", "lina"))


def test_without_a_world_there_are_no_verdicts(tiny_lina, tmp_path, capsys):
    pipe = tiny_lina("swap-world")
    pipe.register_to_config(world="")
    pipe.save_pretrained(tmp_path / "model")
    prompt = "a circle above a square"
    options = ("--prompt", prompt, "--num-images", 1, "--steps", 2, "--intervention", "lam=1")
    assert sample("--model", tmp_path / "model", *options, "--out", tmp_path / "out") == 0
    run = record(tmp_path / "out")
    assert run["prompts"][0]["verdicts"] == {"base": [], "lina": []} and run["scores"] == {"base": {}, "lina": {}}
    assert "all checks passed" not in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "pairs.png") as sheet:
        assert sheet.height == 8 + 2 * (128 + 8), "pictures without words below"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a pink pole"], "'a pink pole'"),
        (
            ["--prompt", RED.replace("red", "pink")],
            "a plant near left' does not fit slot 'colour'; allowed: red, green, blue, yellow",
        ),
        (["--prompt", ""], "prompt must be a non-empty string, got ''"),
        (["--num-images", "0"], "--num-images must be at least 1, got 0"),
        (["--steps", "0"], "num_inference_steps must be a whole number from 1 to 1000, got 0"),
        (["--steps", "1001"], "num_inference_steps must be a whole number from 1 to 1000, got 1001"),
        (["--guidance", "-1"], "guidance_scale must be finite and at least 0, got -1.0"),
        (["--guidance", "nan"], "guidance_scale must be finite and at least 0, got nan"),
        (["--intervention", "atuo"], "--intervention must be auto, off or strengths as lam=1,stop=0.4, got 'atuo'"),
        (["--intervention", ""], "--intervention must be auto, off or strengths"),
        (["--intervention", "lamb=1"], "--intervention has 'lamb'; known: lam, start, stop, kappa, gamma, beta"),
        (["--intervention", "lamb=1"], "Did you mean 'lam'?"),
        (["--intervention", "alpha.=1"], "--intervention has 'alpha.'"),
        (["--intervention", "rho=1"], "it needs an energy to steer down"),
        (["--intervention", "lam=1,lam=2"], "--intervention says lam twice"),
        (["--intervention", "lam=much"], "--intervention 'lam=much': 'much' is not a number"),
        (["--intervention", "lam=-1"], "lam must be finite and at least 0, got -1.0. To move the other way, swap"),
        (["--intervention", "lam=nan"], "lam must be finite and at least 0, got nan"),
        (["--intervention", "alpha.side=inf"], "alpha of 'side' must be finite, got inf"),
        (["--intervention", "alpha.sid=1"], "alpha has 'sid'; known: height, colour, elevation, side, plant"),
        (["--intervention", "lam=1,start=0.3,stop=0.5"], "1 >= s_start > s_stop >= 0, got (0.3, 0.5)"),
        (["--intervention", "lam=1,start=1.5"], "1 >= s_start > s_stop >= 0, got (1.5, 0.3)"),
        (["--intervention", "kappa=0.5"], "parameter (kappa) of a moebius warp must be within [1, 1000], got 0.5"),
        (["--intervention", "kappa=nan"], "parameter (kappa) of a moebius warp must be within [1, 1000], got nan"),
        (["--intervention", "kappa=2,gamma=2"], "--intervention has kappa and gamma, choose one"),
        (["--intervention", "kappa=2,omega=2"], "omega of a warp must be within [0, 1], got 2.0"),
        (["--intervention", "omega=0.5"], "--intervention: omega needs kappa or gamma or beta"),
        (["--intervention", "kappa=2,u_c=0.5"], "--intervention: u_c needs beta"),
        (
            ["--projection", "sideways"],
            "projection must be one of none, orthogonal, clip, clip+orthogonal, momentum, got",
        ),
        (["--model", "lina-shadow"], "'lina-shadow' is neither a folder, nor a hub repository"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(model, tmp_path, capsys, arguments, message):
    out = tmp_path / "new" / "out"
    prompt = [] if "--prompt" in arguments else ["--prompt", RED]
    assert sample("--model", model, "--out", out, *prompt, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gendiff")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "new").exists()


def test_a_prompt_is_needed(model, tmp_path, capsys):
    assert sample("--model", model, "--out", tmp_path / "out") == 2
    assert "'--prompt'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_auto_needs_a_predictor(tiny_lina, tmp_path, capsys):
    tiny_lina().save_pretrained(tmp_path / "model")
    assert sample("--model", tmp_path / "model", "--prompt", RED, "--out", tmp_path / "out") == 2
    assert "'auto' needs a predictor and this model has none: give 'off'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_is_quick():
    code = "import sys; from gendiff.cli import main; main(['sample', 'lina', '--help']); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "--intervention" in run.stdout and run.stdout.splitlines()[-1] == "False"
