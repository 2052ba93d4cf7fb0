"""Training classifiers: what the objective says, what augmentation does, and what a run leaves behind."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.errors import InvalidInputError
from gendiff.models.image_classifier import ImageClassifier
from gendiff.training import trainer
from gendiff.training.checkpoint import newest_checkpoint, read_state
from gendiff.training.classification import build, objective
from gendiff.training.image_draws import flipped, shifted
from gendiff.training.methods import get_method
from gendiff.training.recipe import Recipe, load_recipe


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Bars(Dataset):
    """48 noisy images (1, 12, 12) of a bright left, middle or right third."""

    classes = ("left", "middle", "right")

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(48) % 3
        self.images = torch.randint(0, 60, (48, 1, 12, 12), generator=generator, dtype=torch.uint8)
        for image, label in zip(self.images, self.labels, strict=True):
            image[..., 4 * int(label) : 4 * int(label) + 4] += 180

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index].float() / 127.5 - 1, "label": self.labels[index]}


def recipe(name: str = "bars", objective: dict | None = None, **settings) -> Recipe:
    train = {"steps": 30, "batch_size": 16, "learning_rate": 5e-3, "ema_decay": 0.8, "threads": 1, "log_every": 10}
    return Recipe.from_dict(
        {
            "name": name,
            "task": "classification",
            "seed": 5,
            "models": {"classifier": {"widths": [8, 16], "feature_dim": 16}},
            "losses": {"cross_entropy": 1.0},
            "objective": {"shift": 1} if objective is None else objective,
            "train": {**train, **settings},
        }
    )


def train(folder, resume=False, **settings):
    return trainer.train(recipe(**settings), folder, resume, dataset=Bars())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    return folder


def accuracy(model: ImageClassifier) -> float:
    data = Bars()
    with torch.no_grad():
        return (model(data.images.float() / 127.5 - 1).argmax(1) == data.labels).float().mean().item()


def test_a_run_leaves_the_bare_model_that_has_learnt(trained):
    final = trained / "final"
    assert sorted(path.name for path in final.iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "recipe.yaml",
    ]
    model = ImageClassifier.from_pretrained(final)
    assert tuple(model.config["classes"]) == Bars.classes and model.config["sample_size"] == 12
    assert accuracy(model) > 0.95
    last = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] > 0.8 and last["loss"] == last["cross_entropy"] > 0


def test_the_saved_weights_are_the_averages(trained):
    state = read_state(newest_checkpoint(trained / "checkpoints"))
    model = ImageClassifier.from_pretrained(trained / "final")
    for saved, average in zip(model.parameters(), state["ema"]["shadow_params"], strict=True):
        assert torch.equal(saved, average)
    last = state["modules"]["classifier.classify.weight"]
    assert not torch.equal(model.classify.weight, last)


def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
    train(tmp_path, steps=12, checkpoint_every=0)
    train(tmp_path, resume=True)
    name = "final/diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_half_precision_halves_the_file_and_still_loads(trained, tmp_path):
    train(tmp_path, save_dtype="float16")
    name = "final/diffusion_pytorch_model.safetensors"
    halves, whole = load_file(tmp_path / name), load_file(trained / name)
    assert all(torch.equal(tensor, whole[key].half()) for key, tensor in halves.items())
    model = ImageClassifier.from_pretrained(tmp_path / "final", torch_dtype=torch.float32)
    assert model.dtype == torch.float32 and accuracy(model) > 0.95


def test_the_card_says_how_a_bare_model_is_used(trained, tmp_path):
    card = (trained / "final" / "README.md").read_text()
    assert "ImageClassifier.from_pretrained(" in card and "load_pipeline" not in card
    assert "--extractor" not in card, "the command line does not know this model's name"
    assert "- classification\n" in card and "| parameters | classifier " in card
    train(tmp_path, name="fmnist-cnn", steps=1)
    assert "--extractor fmnist-cnn\n" in (tmp_path / "final" / "README.md").read_text()


def fixed_logits(logits: Tensor):
    return {"classifier": lambda images: logits}


def test_cross_entropy_and_accuracy():
    batch = {"image": torch.zeros(2, 1, 4, 4), "label": torch.tensor([0, 1])}
    terms = objective(fixed_logits(torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])), batch, torch.Generator())
    assert terms["cross_entropy"].item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert terms["accuracy"].item() == 0.5
    smooth = objective(
        fixed_logits(torch.tensor([[math.log(3), 0.0]])),
        {"image": torch.zeros(1, 1, 4, 4), "label": torch.tensor([0])},
        torch.Generator(),
        label_smoothing=0.2,
    )
    assert smooth["cross_entropy"].item() == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_shifts_are_whole_pixels_in_all_directions():
    image = torch.rand(1, 2, 7, 7)
    moved = shifted(image.expand(300, -1, -1, -1), 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")[0]
    windows = {(y, x): padded[:, y : y + 7, x : x + 7] for y in range(5) for x in range(5)}
    found = [next(place for place, window in windows.items() if torch.equal(row, window)) for row in moved]
    assert set(found) == set(windows)


def test_flips_mirror_about_half_and_touch_nothing_else():
    batch = torch.rand(400, 1, 3, 5)
    mirrored = flipped(batch, torch.Generator().manual_seed(0))
    changed = [i for i in range(400) if torch.equal(mirrored[i], batch[i].flip(-1))]
    assert 160 < len(changed) < 240
    assert all(torch.equal(mirrored[i], batch[i]) for i in set(range(400)) - set(changed))


def test_augmentation_follows_from_the_generator_alone():
    batch = {"image": torch.rand(8, 1, 12, 12), "label": torch.arange(8) % 3}
    seen = []

    def spy(images):
        seen.append(images)
        return torch.zeros(len(images), 3)

    for seed, options in ((1, {"shift": 2, "flip": True}), (1, {"shift": 2, "flip": True}), (2, {"shift": 2}), (1, {})):
        torch.manual_seed(len(seen))
        objective({"classifier": spy}, batch, torch.Generator().manual_seed(seed), **options)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[3], batch["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "objective.shift must be an integer from 0 to below the side, got -1"),
        ({"shift": 12}, "objective.shift must be .*, got 12"),
        ({"shift": 1.5}, "objective.shift must be .*, got 1.5"),
        ({"flip": "no"}, "objective.flip must be true or false, got 'no'"),
        ({"label_smoothing": 1.0}, r"objective.label_smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InvalidInputError, match=message):
        train(tmp_path / "run", objective=options)
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_classified_are_refused():
    data = Bars()
    with pytest.raises(InvalidInputError, match="must have one class a picture, but SimpleNamespace has no classes"):
        build({}, SimpleNamespace(images=data.images, labels=data.labels))
    empty = SimpleNamespace(images=data.images, labels=data.labels, classes=(*Bars.classes, "none"))
    with pytest.raises(InvalidInputError, match=r"each of the 4 classes needs a training image, got \[16, 16, 16, 0\]"):
        build({}, empty)
    with pytest.raises(ValueError, match=r"unknown key models\.classifier\.width"):
        build({"classifier": {"width": [8]}}, data)


@pytest.mark.parametrize("name", ["digit-cnn", "emoji-cnn", "fmnist-cnn"])
def test_built_in_recipes_name_the_method_and_its_options(name):
    loaded = load_recipe(name)
    assert loaded.task == "classification" and loaded.name == name
    assert set(loaded.objective) <= {"shift", "flip", "label_smoothing"}
    assert get_method(loaded.task).objective is objective
