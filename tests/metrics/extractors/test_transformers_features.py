"""DINOv2 and CLIP from folders with tiny random networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from gendiff.errors import InvalidInputError, UnsafeFileError, WeightsCorruptError, WeightsNotFoundError
from gendiff.metrics.extractors import get_extractor

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Name -> (network, its folder, its side in pixels, mean, deviation)."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**TINY, image_size=224, patch_size=56)).eval()
    config = transformers.CLIPVisionConfig(**TINY, intermediate_size=16, image_size=48, patch_size=12, projection_dim=6)
    clip = transformers.CLIPVisionModelWithProjection(config).eval()
    folder = tmp_path_factory.mktemp("transformers")
    dino.save_pretrained(folder / "dinov2-l14")
    clip.save_pretrained(folder / "clip-l14-336")
    return {
        "dinov2-l14": (dino, folder / "dinov2-l14", 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "clip-l14-336": (
            *(clip, folder / "clip-l14-336", 48),
            *([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        ),
    }


def prepared(photos, side, mean, deviation):
    """As PIL resizes: antialiased bicubic, rounded to bytes."""
    images = [Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((side, side), Image.BICUBIC) for photo in photos]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def test_dinov2_is_the_class_token(networks, photos):
    model, folder, side, mean, deviation = networks["dinov2-l14"]
    extractor = get_extractor("dinov2-l14", weights=folder)
    rows = extractor(photos)
    with torch.inference_mode():
        expected = model(pixel_values=prepared(photos, side, mean, deviation)).pooler_output
    torch.testing.assert_close(rows, expected, rtol=0, atol=0.01)  # few bytes round the other way
    assert expected.std(0).max() > 0.3
    assert rows.shape == (5, 16) and rows.dtype == torch.float32 and "224x224" in extractor.input_spec
    torch.testing.assert_close(torch.cat([extractor(photos[:2]), extractor(photos[2:])]), rows, rtol=1e-5, atol=1e-5)


def test_clip_embeds_the_centre_square(networks, photos):
    model, folder, side, mean, deviation = networks["clip-l14-336"]
    extractor = get_extractor("clip-l14-336", weights=folder)
    rows = extractor(photos)
    with torch.inference_mode():
        embeddings = model(pixel_values=prepared(photos[..., 2:38, :], side, mean, deviation)).image_embeds
    torch.testing.assert_close(rows, normalize(embeddings, dim=-1), rtol=0, atol=2e-3)
    assert rows.std(0).max() > 0.02
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    wide = torch.cat([photos.new_zeros(5, 3, 40, 4), photos[..., :36], photos.new_zeros(5, 3, 40, 4)], dim=3)
    torch.testing.assert_close(extractor(wide), extractor(wide[..., 2:42]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dinov2-l14", "clip-l14-336"])
def test_a_folder_in_the_weights_dir(name, networks, monkeypatch):
    folder = networks[name][1]
    monkeypatch.setenv("GENDIFF_WEIGHTS_DIR", str(folder.parent))
    extractor = get_extractor(name)
    # It is not the published network, and must not be printed as such.
    assert extractor.label == f"FD[{name}@{extractor.weights_sha256[:8]}]"
    with pytest.raises(InvalidInputError, match="must be uint8"):
        extractor(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["dinov2-l14", "clip-l14-336"])
def test_folders_that_cannot_be_used(name, networks, tmp_path):
    with pytest.raises(WeightsNotFoundError, match=rf"GENDIFF_WEIGHTS_DIR/{name} or pass --weights"):
        get_extractor(name)
    with pytest.raises(WeightsNotFoundError, match=r"Looked in: .*nothing"):
        get_extractor(name, weights=tmp_path / "nothing")
    with pytest.raises(WeightsCorruptError, match="not a folder of transformers"):
        get_extractor(name, weights=tmp_path)
    (tmp_path / "config.json").write_text((networks[name][1] / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="no safetensors, and pickled weights could run code"):
        get_extractor(name, weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(WeightsCorruptError, match="cannot be read as"):
        get_extractor(name, weights=tmp_path)


def test_a_folder_of_another_network(networks, tmp_path):
    other = networks["clip-l14-336"][1]
    (tmp_path / "config.json").write_text((networks["dinov2-l14"][1] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(WeightsCorruptError, match=r"is not a whole Dinov2Model: .* is missing"):
        get_extractor("dinov2-l14", weights=tmp_path)
