"""The throughput benchmark from end to end with a tiny diffusers pipeline, and when a sweep ends."""

from __future__ import annotations

import argparse
import csv
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from gendiff.errors import InvalidInputError
from gendiff.pipelines.image_generation import ImageGenerationPipeline

QUICK = ["--steps", "2", "--warmup", "1", "--repeats", "2", "--budget", "0.5", "--calibration-seconds", "0.001"]


def run(bench, folder, out, *options):
    path = bench("throughput").main(["--model", str(folder), *QUICK, "--output", str(out), *options])
    return json.loads(path.read_text())


def test_a_diffusers_pipeline_is_timed_and_reported(bench, ddim_folder, tmp_path, capsys):
    result = run(bench, ddim_folder, tmp_path / "out" / "t.json", "--batches", "1,2", "--no-memory")
    bench("result_schema").validate(result)
    case = result["cases"][0]
    assert case["id"] == "DDIMPipeline/ddim/b1/s2" and case["nfe"] == 2 and case["shape"] == [1, 8, 8]
    assert case["scheduler"] == "DDIMScheduler" and case["warmup"] == 1 and case["load_s"] > 0
    assert case["network_s"] > 0 and case["params"] > 1000 and case["utilisation"] > 0
    assert result["env"]["load_after"] is not None and result["settings"]["stopped"]
    assert len({case["flops_per_sample"] for case in result["cases"]}) == 1

    text = (tmp_path / "out" / "t.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip() and "| 1" in text and "![" in text
    assert (tmp_path / "out" / "t.png").stat().st_size > 5_000 and (tmp_path / "out" / "t.svg").is_file()
    with (tmp_path / "out" / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["images_per_s"]) for row in rows] == [case["images_per_s"] for case in result["cases"]]


def test_the_same_work_makes_the_same_images(bench, ddim_folder):
    calls, output_sha256 = bench("calls"), bench("harness").output_sha256

    def image_hash(seed):
        # What a fresh process does for the watch over its memory.
        return output_sha256(calls.fresh_run(calls.Work(model=str(ddim_folder), steps=2, seed=seed), 2)())

    assert image_hash(0) == image_hash(0) != image_hash(5)


@pytest.fixture
def swept(bench, monkeypatch):
    """`swept(rates)`: batches that were measured when they make so many images a second; a rate may be an error."""

    def sweep(rates, peak=None):
        module = bench("sweep")

        def measured(pipe, work, batch, *_):
            if isinstance(rates[batch], Exception):
                raise rates[batch]
            return {"batch": batch, "images_per_s": rates[batch], "noisy": False, "peak_mem_bytes": peak}

        monkeypatch.setattr(module, "cost_of", lambda *_: {"nfe": 1, "network_s": 1.0, "flops": 1})
        monkeypatch.setattr(module, "measure_batch", measured)
        cases, reason = module.sweep(None, bench("calls").Work(), argparse.Namespace(batches=list(rates)), {}, {})
        return [case["batch"] for case in cases], reason

    return sweep


def test_a_sweep_ends_when_a_batch_gains_nothing(swept):
    assert swept({1: 10.0, 2: 19.0, 4: 19.5, 8: 99.0}) == ([1, 2, 4], "batch 4 gains less than 5%")
    assert swept({1: 10.0, 2: 19.0}) == ([1, 2], "batch 2 was the last one asked for")


def test_a_sweep_ends_when_memory_does(swept, monkeypatch):
    full = "batch 2 does not fit into memory"
    assert swept({1: 10.0, 2: torch.OutOfMemoryError("full")}) == ([1], full)
    assert swept({1: 10.0, 2: RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")}) == ([1], full)
    with pytest.raises(RuntimeError, match="shapes differ"):
        swept({1: 10.0, 2: RuntimeError("shapes differ")})
    with pytest.raises(InvalidInputError, match="batch 1 does not fit"):
        swept({1: MemoryError()})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100 << 20))
    assert swept({1: 1.0, 2: 2.0}, peak=30 << 20)[0] == [1, 2]
    assert swept({1: 1.0, 2: 2.0}, peak=50 << 20) == ([1], "batch 2 would take about 100 MiB of 100 MiB free")


class Pipe:
    """Looks like a pipeline; remembers how it was called."""

    def __init__(self, config=None, **attributes):
        self.unet = torch.nn.Identity()
        self.unet.config = config or {}
        self.__dict__.update(attributes)

    def to_call(self, bench, batch, **work):
        call = bench("calls").make_call(self, bench("calls").Work(**work), batch)
        call.before()
        return call.run()


def test_pipelines_are_called_by_their_signature(bench):
    class Numbered(Pipe):
        def __call__(self, batch_size=1, generator=None, num_inference_steps=50, output_type="pil"):
            return locals()

    class Texts(Pipe):
        def __call__(self, prompt, num_images_per_prompt=1, guidance_scale=1.0):
            return locals()

    class Classes(Pipe):
        def __call__(self, class_labels=None, num_images_per_prompt=1, generator=None):
            return locals()

    got = Numbered().to_call(bench, 3, steps=7, seed=4)
    assert got["batch_size"] == 3 and got["num_inference_steps"] == 7 and got["output_type"] == "pt"
    assert [generator.initial_seed() for generator in got["generator"]] == [4, 5, 6]
    got = Texts().to_call(bench, 2, prompt="a cat", options={"guidance_scale": 3.0})
    assert got["prompt"] == ["a cat", "a cat"] and got["num_images_per_prompt"] == 1 and got["guidance_scale"] == 3.0
    got = Classes(class_names=["a", "b"]).to_call(bench, 3)
    assert got["class_labels"] == [0, 1, 0] and got["num_images_per_prompt"] == 1
    got = Classes(class_names=[]).to_call(bench, 3)
    assert got["class_labels"] is None and got["num_images_per_prompt"] == 3
    assert Classes({"num_embeds_ada_norm": 1000}).to_call(bench, 2)["class_labels"] == [0, 1]


def test_what_a_signature_does_not_explain_is_named(bench):
    class Masked(Pipe):
        def __call__(self, mask, num_images=1):
            return locals()

    class Single(Pipe):
        def __call__(self):
            return None

    with pytest.raises(InvalidInputError, match=r"Masked wants 'mask'.*--set mask=JSON"):
        Masked().to_call(bench, 1)
    assert Masked().to_call(bench, 2, options={"mask": [1]})["mask"] == [1]
    with pytest.raises(InvalidInputError, match="takes no 'masks'; it takes mask, num_images"):
        Masked().to_call(bench, 1, options={"masks": 1, "mask": 1})
    with pytest.raises(InvalidInputError, match="only batch 1 can be timed"):
        Single().to_call(bench, 2)


def test_pipelines_of_the_package_are_called_with_their_own_inputs(bench, tiny_counterfactual_pipeline, plain_unet):
    calls = bench("calls")
    pipe = tiny_counterfactual_pipeline()
    call = calls.make_call(pipe, calls.Work(steps=2), 3)
    assert call.run().images.shape == (3, 1, 16, 16)
    pipe = ImageGenerationPipeline(plain_unet(3), DDIMScheduler(num_train_timesteps=100), ["a", "b"])
    pipe.set_progress_bar_config(disable=True)
    call = calls.make_call(pipe, calls.Work(steps=2), 3)
    runs = []
    for _ in range(2):
        call.before()
        runs.append(call.run())
    assert runs[0].class_labels.tolist() == [0, 1, 0] and torch.equal(runs[0].images, runs[1].images)


def test_options_of_the_command_line_are_json_or_words(bench):
    option = bench("calls").option
    assert option("guidance_scale=2.5") == ("guidance_scale", 2.5)
    assert option("inversion=ddim") == ("inversion", "ddim")
    assert option("a=[1, 2]") == ("a", [1, 2])
    with pytest.raises(InvalidInputError, match="must look like NAME=VALUE, got 'x'"):
        option("x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--batches", "2,1"], "must grow, like 1,2,4"),
        (["--batches", "0"], "must be at least 1, got 0"),
        (["--budget", "0"], "must be a number of seconds above 0, got '0'"),
        (["--device", "cuda:99"], "cannot be used on this machine"),
        (["--task", "painting"], "unknown task 'painting'"),
        (["--model", "nowhere"], "'nowhere' is neither a folder"),
        (["--set", "x"], "--set must look like NAME=VALUE"),
        (["--set", "guidance=2"], "takes no 'guidance'"),
    ],
)
def test_bad_arguments_are_named(bench, ddim_folder, tmp_path, change, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(bench, ddim_folder, tmp_path / "t.json", "--no-memory", *change)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "t.json").exists()
