"""A tiny causal video model from recipe to rollout: it is built, conditioned, trained, resumed, and learns by heart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_video import TINY, MovingSquares, batch_of

from gendiff.models.causal_video import CausalVideoTransformer3DModel
from gendiff.pipelines.causal_video import CausalVideoPipeline
from gendiff.training import Recipe, train
from gendiff.training.causal_video import METHOD, objective

DDPM = {"class": "DDPMScheduler"}


def build(scheduler: dict[str, Any] | None = None, **transformer: Any) -> CausalVideoPipeline:
    torch.manual_seed(0)
    pipe = METHOD.build({"transformer": TINY | transformer, "scheduler": scheduler or {}}, MovingSquares())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def recipe(
    objective: dict[str, Any] | None = None, transformer: dict[str, Any] | None = None, **settings: Any
) -> Recipe:
    defaults = {"batch_size": 4, "learning_rate": 5e-3, "lr_schedule": "cosine", "threads": 1, "checkpoint_every": 0}
    return Recipe.from_dict(
        {
            "name": "squares",
            "task": "causal-video",
            # Where the past all but decides the future, what is to be learned shows at high noise.
            "models": {"transformer": TINY | (transformer or {}), "scheduler": {"shift": 3.0}},
            "objective": objective or {},
            "losses": {"diffusion": 1.0},
            "train": {**defaults, **settings},
        }
    )


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "final" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_four_videos_are_learned_by_heart(tmp_path):
    run, data = tmp_path / "run", MovingSquares()
    settings = {"steps": 250, "lr_warmup_steps": 25, "ema_decay": 0.97, "log_every": 25}
    train(recipe({"context_noise": 0.05}, **settings), run, dataset=data)
    losses = [row["diffusion"] for row in rows(run)]
    with torch.no_grad():
        untrained = objective(build({"shift": 3.0}).components, batch_of(data), torch.Generator().manual_seed(0))
    assert losses[-1] * 10 < float(untrained["diffusion"])

    pipe = CausalVideoPipeline.from_pretrained(run / "final")
    pipe.set_progress_bar_config(disable=True)
    truth = batch_of(data)["video"] / 2 + 0.5
    generator = torch.Generator().manual_seed(1)
    told = {"num_inference_steps": 8, "generator": generator, "output_type": "pt"}
    video = pipe(video=truth[:, :5], num_frames=7, **told).frames

    def psnr(guess: torch.Tensor) -> torch.Tensor:
        """In dB, of the frames that were not given, (videos,)."""
        return -10 * (guess - truth)[:, 5:].square().mean((1, 2, 3, 4)).log10()

    assert psnr(truth[:, 4:5].expand_as(truth)).max() < 12  # standing still does not do
    assert psnr(video).min() > 20
    assert torch.equal(video[:, :5], truth[:, :5])


class Killed(BaseException):
    """What the process dies of."""


@pytest.mark.parametrize("forcing", ["teacher", "prefix"])
def test_training_lowers_the_loss_and_a_killed_run_resumes_to_the_same_bits(tmp_path, forcing):
    classes = {"num_classes": 4, "pos": "cyclic"}
    settings = {"steps": 24, "batch_size": 2, "log_every": 8, "checkpoint_every": 7, "ema_decay": 0.9}
    plan = recipe({"forcing": forcing}, classes, **settings)
    train(plan, tmp_path / "whole", dataset=MovingSquares())
    losses = [row["diffusion"] for row in rows(tmp_path / "whole")]
    assert losses[-1] < 0.8 * losses[0]

    def dies(models: Any, batch: Any, generator: torch.Generator, forcing: str) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 11:  # step 10: one call tries the objective before training
            raise Killed
        return objective(models, batch, generator, forcing)

    calls: list[int] = []
    method = dataclasses.replace(METHOD, objective=dies)
    with pytest.raises(Killed):
        train(plan, tmp_path / "killed", method=method, dataset=MovingSquares())
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-00000007"]
    train(plan, tmp_path / "killed", resume=True, dataset=MovingSquares())
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert rows(tmp_path / "killed")[-1]["diffusion"] == rows(tmp_path / "whole")[-1]["diffusion"]


@pytest.mark.parametrize("forcing", ["teacher", "prefix"])
def test_a_ddpm_schedule_trains_generates_and_is_saved(tmp_path, forcing):
    pipe = build({**DDPM, "clip_sample": True}, num_layers=1)
    scheduler, network = pipe.scheduler, pipe.transformer.train()
    assert type(scheduler) is DDPMScheduler and scheduler.config["prediction_type"] == "epsilon"
    torch.testing.assert_close(scheduler.betas, torch.linspace(1e-4, 0.02, 1000))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    generator, batch, losses = torch.Generator().manual_seed(0), batch_of(MovingSquares()), []
    for _ in range(30):
        loss = objective(pipe.components, batch, generator, forcing, timesteps="uniform")["diffusion"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(1, abs=0.2)  # an untrained network says 0, the noise has variance 1
    assert sum(losses[-5:]) / 5 < 0.8
    pipe.save_pretrained(tmp_path)
    again = CausalVideoPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is DDPMScheduler
    told: dict[str, Any] = {"num_inference_steps": 3, "num_frames": 8, "output_type": "pt"}
    videos = []
    for each in (pipe, again):
        each.transformer.eval()
        videos.append(each(video=batch["video"][:, :3] / 2 + 0.5, generator=torch.Generator().manual_seed(0), **told))
    assert videos[0].frames.shape == (4, 8, 1, 16, 16)
    assert torch.equal(videos[0].frames, videos[1].frames)


def test_the_scheduler_is_flow_matching_unless_the_recipe_says_otherwise():
    assert type(build().scheduler) is FlowMatchEulerDiscreteScheduler
    assert build({"class": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}).scheduler.config["shift"] == 2.0
    assert (
        build({"class": "DDIMScheduler", "prediction_type": "sample"}).scheduler.config["prediction_type"] == "sample"
    )


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"unet": {}}, r"unknown key models\.unet\. Known: transformer, scheduler"),
        ({"transformer": {"chunk": 2}}, r"unknown key models\.transformer\.chunk\. Did you mean 'chunk_size'"),
        ({"scheduler": {"class": "PNDMScheduler"}}, r"models\.scheduler\.class must be one of FlowMatch.*got 'PNDM"),
        ({"scheduler": {"beta_start": 0.1}}, r"unknown key models\.scheduler\.beta_start"),
        ({"scheduler": {**DDPM, "shift": 2.0}}, r"unknown key models\.scheduler\.shift"),
        (
            {"scheduler": {**DDPM, "prediction_type": "flow"}},
            r"prediction_type must be one of epsilon, v_prediction, sample, got 'flow'",
        ),
    ],
)
def test_what_cannot_be_built_is_named(models, message):
    with pytest.raises(ValueError, match=message):
        METHOD.build(models, MovingSquares())


def spied(pipe: CausalVideoPipeline) -> list[dict[str, Any]]:
    """Arguments of each later call of the network."""
    seen: list[dict[str, Any]] = []
    pipe.transformer.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    return seen


@pytest.mark.parametrize("forcing", ["teacher", "prefix"])
def test_class_and_text_are_hidden_together_from_the_share_that_was_asked_for(forcing):
    pipe = build(num_classes=4, cross_attention_dim=8, num_layers=1)
    batch, seen = batch_of(MovingSquares(), 50), spied(pipe)
    for share in (0.0, 0.25, 1.0):
        with torch.no_grad():
            objective(pipe.components, batch, torch.Generator().manual_seed(0), forcing, label_dropout=share)
        labels, text = seen[-1]["class_labels"], seen[-1]["encoder_hidden_states"]
        hidden = labels == 4
        assert hidden.float().mean().item() == pytest.approx(share, abs=0.06)
        assert torch.equal(labels[~hidden], batch["label"][~hidden, 0])
        assert torch.equal(text[~hidden], batch["text"][~hidden])
        assert not text[hidden].any()
        assert torch.equal(seen[-1]["encoder_attention_mask"], batch["text_mask"])
    assert batch["text"].any(dim=(1, 2)).all()  # the caller's text is left alone


def test_text_is_learned_from():
    """All videos begin with the same frame: where the square goes after it, only the text can say."""
    pipe = build({"shift": 20.0}, cross_attention_dim=8, num_layers=1)
    batch, generator = batch_of(MovingSquares(3)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(pipe.transformer.train().parameters(), lr=1e-2)
    for _ in range(150):
        loss = objective(pipe.components, batch, generator, label_dropout=0.0, context_noise=0.0)["diffusion"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pipe.transformer.parameters(), 1.0)
        optimizer.step()

    def loss_of(batch: dict[str, torch.Tensor]) -> float:
        """At almost pure noise, where what is to be seen there cannot be told from the frames themselves."""
        models = {"transformer": pipe.transformer, "scheduler": FlowMatchEulerDiscreteScheduler(shift=50.0)}
        many = {name: value.repeat(8, *[1] * (value.ndim - 1)) for name, value in batch.items()}
        with torch.no_grad():
            same = torch.Generator().manual_seed(5)
            return float(objective(models, many, same, label_dropout=0.0, context_noise=0.0)["diffusion"])

    swapped = {name: value if name == "video" else value.roll(1, 0) for name, value in batch.items()}
    assert loss_of(swapped) > 2 * loss_of(batch)
    with pytest.raises(ValueError, match="items must have 'text', which the transformer is conditioned on"):
        objective(pipe.components, {"video": batch["video"]}, generator)


@pytest.mark.parametrize(
    ("settings", "given"),
    [({}, 3), ({"num_classes": 4, "cross_attention_dim": 8}, 3), ({"attention_mode": "full", "chunk_size": 4}, 5)],
)
def test_the_preview_goes_on_from_the_first_frames_of_training_clips(settings, given):
    pipe = build(num_layers=1, **settings)
    pipe.transformer.eval()
    seen = spied(pipe)
    picture = METHOD.preview(pipe, MovingSquares(), torch.Generator().manual_seed(0))
    assert picture is not None and picture.shape == (1, 4 * 16, (given + 20) * 16)
    truth = batch_of(MovingSquares())["video"] / 2 + 0.5
    assert torch.equal(picture[0, 16:32, :16], truth[1, 0, 0])
    if settings.get("num_classes"):
        assert seen[-1]["class_labels"].tolist() == [0, 1, 2, 3]
        assert torch.equal(seen[-1]["encoder_hidden_states"], batch_of(MovingSquares())["text"])


@pytest.mark.parametrize(
    ("billions", "settings", "period"),
    [
        (0.609, {"chunk_size": 8, "context_frames": 25}, 33),
        (0.763, {"chunk_size": 16, "context_frames": 49, "cross_attention_dim": 4096}, 65),
    ],
)
def test_the_presets_of_the_paper_can_be_built(billions, settings, period):
    with torch.device("meta"):
        model = CausalVideoTransformer3DModel(
            sample_size=32,
            in_channels=4,
            patch_size=2,
            num_layers=28,
            num_attention_heads=16,
            attention_head_dim=72,
            prefix_references=3,
            pos="cyclic",
            **settings,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert (model.sites, model.dim, model.time_period) == (256, 1152, period)
