from __future__ import annotations

import pytest
from diffusers import DDIMScheduler, UNet2DModel

from gendiff.training.recipe import LossTerm, Recipe, builtin_recipes, check_arguments, load_recipe

TEXT = """
name: small
task: counterfactual
seed: 7
data: {name: pendulum, size: 32}
models: {unet: {block_out_channels: [8, 16]}, scheduler: {}}
losses: {diffusion: 1.0, align: {weight: 2, warmup: [0.05, 0.1]}}
train: {steps: 20, learning_rate: 1e-4, mixed_precision: no, save_dtype: float16}
preview: {every: 5}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def minimal(**changes):
    return {"name": "a", "task": "counterfactual", "losses": {"diffusion": 1}, **changes}


def test_a_recipe_is_read(path):
    recipe = load_recipe(path)
    assert recipe.train.steps == 20
    assert recipe.train.learning_rate == 1e-4  # a string for plain YAML 1.1
    assert recipe.train.mixed_precision == "no"  # false for plain YAML 1.1
    assert recipe.train.batch_size == 64
    assert recipe.losses == {"diffusion": LossTerm(1.0), "align": LossTerm(2.0, (0.05, 0.1))}
    assert recipe.models["unet"] == {"block_out_channels": [8, 16]}
    assert recipe.preview.every == 5


def test_a_recipe_survives_writing_and_reading(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_overrides(path):
    recipe = load_recipe(path, ["train.steps=3", "losses.align.weight=0.5", "train.tracker=tensorboard", "licence=mit"])
    assert recipe.train.steps == 3
    assert recipe.losses["align"] == LossTerm(0.5, (0.05, 0.1))
    assert recipe.train.tracker == "tensorboard"
    assert recipe.licence == "mit"
    assert load_recipe(path, ["models.projection.hidden_dim=8"]).models["projection"] == {"hidden_dim": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "an override must look like train.steps=100, got 'train.steps'"),
        ("train..steps=3", "an override must look like"),
        ("losses.diffusion.weight=3", r"cannot set losses.diffusion.weight: losses.diffusion is 1\.0"),
        ("train.stepz=3", "unknown key train.stepz. Did you mean 'steps'?"),
        ("train.steps=[", "is not YAML"),
    ],
)
def test_bad_overrides(path, override, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_recipe(path, [override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lossez": {}}, r"unknown key lossez\. Did you mean 'losses'\?"),
        ({"train": {"learning_rat": 1}}, r"unknown key train\.learning_rat\. Did you mean 'learning_rate'\?"),
        ({"losses": {"align": {"wieght": 1}}}, r"unknown key losses\.align\.wieght\. Did you mean 'weight'\?"),
        ({"train": {"steps": 0}}, r"train\.steps must be an integer of at least 1, got 0"),
        ({"train": {"steps": 1.5}}, r"train\.steps must be an integer of at least 1, got 1\.5"),
        ({"train": {"steps": True}}, r"train\.steps must be an integer of at least 1, got True"),
        ({"train": {"learning_rate": "fast"}}, r"train\.learning_rate must be a number of at least 0, got 'fast'"),
        ({"train": {"learning_rate": float("nan")}}, r"train\.learning_rate must be a number"),
        ({"train": {"ema_decay": 1}}, r"train\.ema_decay must be a number of at least 0 and below 1, got 1"),
        ({"train": {"lr_schedule": "cosin"}}, r"train\.lr_schedule must be one of .*Did you mean 'cosine'\?"),
        ({"train": {"channels_last": 1}}, r"train\.channels_last must be true or false, got 1"),
        ({"train": [1]}, r"train must be keys and values, got \[1\]"),
        ({"preview": {"every": -1}}, r"preview\.every must be an integer of at least 0, got -1"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"losses": {}}, "losses must name at least one term"),
        ({"losses": {"a": -1}}, r"losses\.a must be a number of at least 0, got -1"),
        ({"losses": {"a": {"warmup": 3}}}, r"losses\.a\.warmup must be \[start factor, share of the steps\], got 3"),
        (
            {"losses": {"a": {"warmup": [0, 2]}}},
            r"losses\.a\.warmup: the share of the steps must be in",
        ),
        ({"models": {"unet": 3}}, r"models\.unet must be keys and values, got 3"),
        ({"task": "counterfactuals"}, r"task must be one of .*Did you mean 'counterfactual'\?"),
        ({"name": "../x"}, "name must be letters"),
        ({"name": 3}, "name must be text, got 3"),
    ],
)
def test_bad_values_name_their_path_and_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(minimal(**changes))


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match="task is missing"):
        Recipe.from_dict({"name": "a", "losses": {"a": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read as YAML"),
        ("name: a\nname: b", "key 'name' is given twice"),
        ("- 1", r"must hold keys and values at the top level, got \[1\]"),
        ("name: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_an_unknown_recipe_is_neither_file_nor_builtin():
    with pytest.raises(ValueError, match="no recipe 'counterfactual-nothing': neither a file nor a built-in recipe"):
        load_recipe("counterfactual-nothing")


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_are_valid_and_bear_their_file_name(name):
    assert load_recipe(name).name == name


def test_a_loss_rises_over_its_share_of_the_steps():
    term = LossTerm(weight=2.0, warmup=(0.25, 0.5))
    assert [term.at(p) for p in (0.0, 0.25, 0.5, 0.9)] == [0.5, 1.25, 2.0, 2.0]
    assert LossTerm(3.0).at(0.0) == 3.0
    assert LossTerm(3.0, (0.0, 0.0)).at(0.0) == 3.0


def test_arguments_are_checked_against_a_constructor():
    check_arguments("models.unet", {"sample_size": 8}, UNet2DModel)
    check_arguments("models.scheduler", {"beta_schedule": "linear"}, DDIMScheduler)
    with pytest.raises(ValueError, match=r"unknown key models\.unet\.sampel_size\. Did you mean 'sample_size'\?"):
        check_arguments("models.unet", {"sampel_size": 8}, UNet2DModel)
    with pytest.raises(ValueError, match=r"unknown key models\.vae\. Known: unet, scheduler"):
        check_arguments("models", {"vae": {}}, ["unet", "scheduler"])
    with pytest.raises(ValueError, match=r"loss\.weight is missing"):
        check_arguments("loss", {"warmup": 1}, lambda weight, warmup=None: None)
