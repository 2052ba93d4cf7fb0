"""A method small enough to train in a test: a diffusers pipeline on synthetic stripes."""

from __future__ import annotations

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.training.methods import Method
from gendiff.training.recipe import Recipe, check_arguments


class Stripes(Dataset):
    """24 images (1, 8, 8) in [-1, 1]; image i has its bright rows at phase i."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = torch.sin(torch.arange(8) * 0.8 + 0.5 * index)
        return {"image": rows[None, :, None].expand(1, 8, 8).clone(), "labels": torch.tensor([float(index)])}


def build(models, dataset):
    check_arguments("models", models, ["unet", "scheduler"])
    check_arguments("models.unet", models.get("unet", {}), UNet2DModel)
    unet = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
        "dropout": 0.1,
    }
    return DDPMPipeline(UNet2DModel(**(unet | models.get("unet", {}))), DDPMScheduler(num_train_timesteps=50))


def objective(models, batch, generator):
    image, scheduler = batch["image"], models["scheduler"]
    noise = torch.randn(image.shape, generator=generator)
    timesteps = torch.randint(50, (len(image),), generator=generator)
    prediction = models["unet"](scheduler.add_noise(image, noise, timesteps), timesteps, return_dict=False)[0]
    return {
        "diffusion": torch.nn.functional.mse_loss(prediction, noise),
        "size": prediction.square().mean(),
        "first_label": batch["labels"][0, 0],
    }


def preview(pipeline, dataset, generator):
    assert not pipeline.unet.training
    images = pipeline(batch_size=2, generator=generator, num_inference_steps=2, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2).reshape(1, 16, 8)


METHOD = Method(build=build, objective=objective, preview=preview)


def tiny_recipe(**train) -> Recipe:
    """One thread, because the bits of a sum depend on how many share it."""
    settings = {"steps": 8, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "threads": 1, "ema_decay": 0.9}
    return Recipe.from_dict(
        {
            "name": "tiny",
            "task": "counterfactual",
            "seed": 3,
            "losses": {"diffusion": 1.0, "size": {"weight": 0.01, "warmup": [0.0, 0.5]}},
            "train": {"checkpoint_every": 3, **settings, **train},
        }
    )
