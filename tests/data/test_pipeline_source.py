from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.sources import open_source
from gendiff.errors import InvalidInputError

NUM, STEPS = 11, 4


def ddim(widths=(8, 16)) -> DDIMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return DDIMPipeline(unet, DDIMScheduler())


def read(source, batch):
    rows = range(len(source))
    return torch.cat([source.read(rows[start : start + batch]) for start in range(0, len(rows), batch)])


class Drawn:
    """A pipeline without a network: each image is noise of its generator, brighter by its class."""

    class_names = ("dark", "grey", "light")

    def __init__(self, **output):
        self.output, self.calls = output, []

    def __call__(self, class_labels=None, num_images_per_prompt=1, generator=None, output_type="pil", factor=0.1):
        assert output_type == "pt"
        count = num_images_per_prompt if class_labels is None else len(class_labels) * num_images_per_prompt
        assert len(generator) == count
        self.calls.append(class_labels)
        base = torch.zeros(count) if class_labels is None else torch.tensor(class_labels) / 3
        noise = torch.stack([torch.rand(1, 4, 4, generator=one) for one in generator])
        return SimpleNamespace(images=base[:, None, None, None] + factor * noise, **self.output)


class Returning:
    """A pipeline that returns what it is told to."""

    def __init__(self, images):
        self.images = images

    def __call__(self, batch_size=1, generator=None):
        return (self.images,)


@pytest.fixture(scope="module")
def images():
    return read(PipelineSource(ddim(), NUM, num_inference_steps=STEPS), NUM)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_bytes_do_not_depend_on_how_many_are_read_at_a_time(batch, images):
    assert images.shape == (NUM, 3, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(read(PipelineSource(ddim(), NUM, num_inference_steps=STEPS), batch), images)


def test_bytes_depend_neither_on_order_nor_on_number_nor_on_threads(images):
    source = PipelineSource(ddim(), NUM, num_inference_steps=STEPS)
    order = [10, 0, 9, 3, 3]
    assert torch.equal(source.read(order), images[order])
    assert torch.equal(PipelineSource(ddim(), 3, num_inference_steps=STEPS).read([0, 1, 2]), images[:3])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(read(source, 5), images)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_seeds_are_indices(images):
    later = PipelineSource(ddim(), 8, seed=8, num_inference_steps=STEPS)
    assert torch.equal(later.read([0, 1, 2]), images[8:])
    assert later.describe()["seeds"] == [8, 15]
    last = PipelineSource(Drawn(), 3, seed=2**32 - 1)
    assert torch.equal(last.read([1, 2]), PipelineSource(Drawn(), 3).read([0, 1]))
    assert last.describe()["seeds"] == [2**32 - 1, 1]


def test_a_block_is_what_the_pipeline_makes_of_its_generators(images):
    pipe = ddim()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    made = pipe(batch_size=8, generator=generators, num_inference_steps=STEPS, output_type="np").images
    expected = torch.from_numpy((made * np.float32(255)).round().astype(np.uint8)).permute(0, 3, 1, 2)
    assert torch.equal(images[:8], expected)


def test_each_block_is_made_once_and_counted():
    source = PipelineSource(ddim(), NUM, batch_size=4, num_inference_steps=STEPS)
    assert source.stats() == {"images": 0, "calls": 0, "network_calls": 0, "flops": None, "seconds": 0.0}
    read(source, 3)
    found = source.stats()
    assert (found["images"], found["calls"], found["network_calls"]) == (12, 3, 3 * STEPS)
    assert found["seconds"] > 0 and found["flops"] is None
    reporting = PipelineSource(Drawn(stats=SimpleNamespace(network_calls=5, flops=70)), 9, batch_size=4)
    read(reporting, 9)
    assert reporting.stats()["network_calls"] == 15 and reporting.stats()["flops"] == 210


def test_the_pipeline_and_the_global_state_are_left_as_they_were(capsys):
    pipe = ddim()
    pipe.unet.train()
    pipe.unet.conv_in.eval()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    PipelineSource(pipe, 2, num_inference_steps=1).read([0])
    assert torch.equal(torch.get_rng_state(), state)
    assert pipe.unet.training and not pipe.unet.conv_in.training
    assert pipe._progress_bar_config == {}
    assert capsys.readouterr().err == ""
    assert not pipe.unet._forward_pre_hooks


def test_a_pipeline_that_draws_beside_its_generators_gives_the_same_bytes_again():
    class Sloppy:
        def __call__(self, batch_size=1, generator=None):
            return SimpleNamespace(images=torch.rand(batch_size, 1, 2, 2))

    first = read(PipelineSource(Sloppy(), 10), 10)
    torch.manual_seed(123)
    assert torch.equal(read(PipelineSource(Sloppy(), 10), 3), first)
    assert not torch.equal(first[:2], first[8:])


def test_labels_as_asked_for():
    pipe = Drawn()
    listed = PipelineSource(pipe, 3, batch_size=2, labels=[2, 0, 1])
    dark_to_light = read(listed, 3).float().mean((1, 2, 3))
    assert dark_to_light.argsort().tolist() == [1, 2, 0]
    assert pipe.calls == [[2, 0], [1, 2]] and listed.labels(3).tolist() == [2, 0, 1]
    balanced = PipelineSource(Drawn(), 7, labels="balanced")
    assert balanced.labels(7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    two = PipelineSource(Drawn(), 4, labels="balanced", num_classes=2)
    assert two.labels(4).tolist() == [0, 1, 0, 1]
    assert PipelineSource(Drawn(), 4).labels(4) is None
    assert PipelineSource(Drawn(), 2, labels=torch.tensor([1, 2])).labels(2).tolist() == [1, 2]


def test_random_labels_are_drawn_from_the_generator_of_the_image():
    pipe = Drawn()
    source = PipelineSource(pipe, 64, labels="random")
    expected = [int(torch.randint(3, (1,), generator=torch.Generator().manual_seed(seed))) for seed in range(64)]
    assert source.labels(64).tolist() == expected and set(expected) == {0, 1, 2}
    images = read(source, 5)
    assert [label for call in pipe.calls for label in call] == expected
    generator = torch.Generator().manual_seed(1)
    label = int(torch.randint(3, (1,), generator=generator))
    image = label / 3 + 0.1 * torch.rand(1, 4, 4, generator=generator)
    assert torch.equal(images[1], (255 * image).round().byte().expand(3, -1, -1))


def test_what_it_says_of_itself():
    pipe = ddim()
    source = open_source(PipelineSource(pipe, 2, num_inference_steps=2, eta=0.5))
    found = source.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["kind"] == "pipeline" and found["name"] == "DDIMPipeline"
    assert found["scheduler"] == "DDIMScheduler" and found["scheduler_config"]["num_train_timesteps"] == 1000
    assert found["steps"] == 2 and found["arguments"] == {"num_inference_steps": 2, "eta": 0.5}
    assert (found["block"], found["threads"], found["dtype"], found["device"]) == (8, 1, "float32", "cpu")
    assert PipelineSource(pipe, 2, threads=None).facts()["threads"] == torch.get_num_threads()
    assert PipelineSource(pipe, 2).facts()["steps"] == 50
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1
    changed = PipelineSource(pipe, 2, num_inference_steps=2).describe()
    assert changed["weights_sha256"] != found["weights_sha256"] and changed["sha256"] != found["sha256"]


def test_what_pipelines_may_return():
    grey = torch.arange(16, dtype=torch.float32).reshape(4, 1, 2, 2) / 15
    bytes_ = (255 * grey).round().byte()
    colour = bytes_.expand(-1, 3, -1, -1)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in colour]
    for images in (grey, list(grey), bytes_, grey.permute(0, 2, 3, 1).numpy(), pictures):
        source = PipelineSource(Returning(images), 3, batch_size=4)
        assert torch.equal(source.read([0, 1, 2]), colour[:3])
    assert PipelineSource(Returning(grey - 5e-4), 4, batch_size=4).read([0])[0, 0, 0, 0] == 0
    assert PipelineSource(Returning(grey), 3, batch_size=4, resize=(1, 1)).read([0]).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.tensor([0.0, torch.nan])[:, None, None, None], "Returning: image 3 holds NaN or infinite values"),
        (torch.tensor([0.0, 1.5])[:, None, None, None], r"image 3 has values from 1\.5 to 1\.5; .* in \[0, 1\]"),
        (torch.tensor([-1.0, 1.0])[:, None, None, None], r"image 2 has values from -1 to -1; .* \(x \+ 1\) / 2"),
        (torch.zeros(3, 1, 2, 2), r"returned images of shape \(3, 1, 2, 2\); expected 2 images"),
        (torch.zeros(2, 5, 1, 2, 2), r"shape \(2, 5, 1, 2, 2\)"),
        (torch.zeros(2, 2, 2, 2), r"with C in \(1, 3, 4\)"),
    ],
)
def test_images_that_cannot_be_scored(images, message):
    with pytest.raises(InvalidInputError, match=message):
        PipelineSource(Returning(images), 4, batch_size=2).read([3])


def no_generator(batch_size=1):
    """Takes no generator."""


def no_count(generator=None, class_labels=None):
    """Takes no number of images."""


@pytest.mark.parametrize(
    ("pipeline", "arguments", "message"),
    [
        (Drawn(), {"num": 0}, "num must be a whole number of at least 1, got 0"),
        (Drawn(), {"num": 2.0}, "num must be a whole number"),
        (Drawn(), {"num": 2, "seed": -1}, "seed must be a whole number of at least 0, got -1"),
        (Drawn(), {"num": 2, "batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (Drawn(), {"num": 2, "threads": 0}, "threads must be a whole number of at least 1"),
        (Drawn(), {"num": 2, "labels": [0]}, "labels must be one for each of 2 images, got 1"),
        (Drawn(), {"num": 2, "labels": [0, -1]}, "a label must be a whole number of at least 0, got -1"),
        (Drawn(), {"num": 2, "labels": "all"}, "labels must be None, 'random', 'balanced' or a list, got 'all'"),
        (Drawn(), {"num": 2, "labels": "random", "num_classes": 0}, "num_classes must be a whole number"),
        (no_count, {"num": 2, "labels": "random"}, "needs num_classes: function names no classes"),
        (Drawn(), {"num": 2, "generator": None}, "generator is set by PipelineSource"),
        (Drawn(), {"num": 2, "output_type": "np"}, "output_type is set by PipelineSource"),
        (Drawn(), {"num": 2, "steps": 3}, "Drawn takes no 'steps'; it takes class_labels, num_images_per_prompt"),
        (Returning(None), {"num": 2, "labels": [0, 1]}, "labels are given, but Returning takes no class_labels"),
        (no_generator, {"num": 2}, "takes no generator, so its images cannot be made again"),
        (no_count, {"num": 2}, "takes none of num_images, batch_size"),
        (None, {"num": 2}, "pipeline must be callable, got NoneType"),
    ],
)
def test_arguments_are_checked_before_any_work(pipeline, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        PipelineSource(pipeline, **arguments)
