"""Training of a plain diffusion model: the loss is that of a perfect network where it can be known, and it falls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from gendiff.training.diffusion import diffusion_loss
from gendiff.training.image_generation import METHOD, objective

CLASSES = ("low", "high")


class TwoTones(torch.utils.data.Dataset):
    """Flat pictures, dark or bright by class."""

    classes = CLASSES
    labels = torch.arange(64) % 2
    images = (64 + 128 * labels).to(torch.uint8)[:, None, None, None].expand(64, 1, 8, 8)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index].float() / 127.5 - 1, "label": self.labels[index]}


MODELS = {
    "unet": {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "add_attention": False,
        "norm_num_groups": 4,
    }
}


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_a_network_that_knows_the_answer_has_no_loss(kind):
    scheduler = DDIMScheduler(prediction_type=kind)
    image = torch.full((4, 1, 8, 8), 0.5)

    def perfect(noisy, timesteps, class_labels, return_dict):
        share = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (noisy - share.sqrt() * image) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * image
        return ({"v_prediction": velocity, "epsilon": noise, "sample": image}[kind],)

    generator = torch.Generator().manual_seed(0)
    assert diffusion_loss(perfect, scheduler, image, torch.zeros(4), generator) < 1e-6
    assert diffusion_loss(lambda noisy, *_, **__: (noisy,), scheduler, image, torch.zeros(4), generator) > 1e-2


def test_the_class_is_hidden_from_the_share_that_was_asked_for():
    seen = []

    class Spy(SimpleNamespace):
        def __call__(self, noisy, timesteps, class_labels, return_dict):
            seen.append(class_labels)
            return (noisy,)

    models = {"unet": Spy(config={"num_class_embeds": 3}), "scheduler": DDIMScheduler()}
    batch = {"image": torch.zeros(4000, 1, 2, 2), "label": torch.arange(4000) % 2}
    for share in (0.0, 0.25, 1.0):
        objective(models, batch, torch.Generator().manual_seed(0), label_dropout=share)
        hidden = seen[-1] == 2
        assert hidden.float().mean().item() == pytest.approx(share, abs=0.03)
        assert torch.equal(seen[-1][~hidden], batch["label"][~hidden])


def test_a_small_model_learns_its_classes():
    torch.manual_seed(0)
    pipe = METHOD.build(MODELS, TwoTones())
    pipe.set_progress_bar_config(disable=True)
    assert pipe.class_names == list(CLASSES)
    data = TwoTones()
    batch = {"image": data.images.float() / 127.5 - 1, "label": data.labels}
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        loss = objective(pipe.components, batch, generator)["diffusion"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipe.unet.eval()
    images = pipe(["low", "high"], num_inference_steps=10, output_type="pt", generator=generator).images
    assert images[1].mean() - images[0].mean() > 0.25  # the truth is 0.5


def test_the_preview_has_a_column_for_each_class():
    torch.manual_seed(0)
    pipe = METHOD.build(MODELS, TwoTones())
    picture = METHOD.preview(pipe, TwoTones(), torch.Generator().manual_seed(0))
    assert picture is not None and picture.shape == (1, 6 * 8, 2 * 8)


@pytest.mark.parametrize(
    ("models", "message"),
    [({"vae": {}}, r"unknown key models\.vae"), ({"unet": {"layers": 2}}, r"unknown key models\.unet\.layers")],
)
def test_unknown_arguments_are_named(models, message):
    with pytest.raises(ValueError, match=message):
        METHOD.build(models, TwoTones())
