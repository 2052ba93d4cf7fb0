"""Features of our own small classifiers: the metric of a domain, where ImageNet's features do not look closely."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gendiff.errors import InvalidInputError, UnsafeFileError, WeightsNotFoundError
from gendiff.metrics.extractors.base import FeatureExtractor, with_sha
from gendiff.metrics.extractors.pixel import luma, resized
from gendiff.metrics.weights import sha256_of

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


class ClassifierExtractor(FeatureExtractor):
    """What the last layer of an `ImageClassifier` reads. Keep the images it was trained on out of the reference.

    Args:
        name: of a built-in classifier, e.g. fmnist-cnn.
        folder: another classifier, as `ImageClassifier.save_pretrained` writes it; its hash is then part of the id.

    Raises:
        WeightsNotFoundError: no such folder.
        UnsafeFileError: its weights are pickled.
        InvalidInputError: it reads neither grey nor RGB images.
    """

    def __init__(self, name: str, folder: str | Path | None = None) -> None:
        from gendiff.models.image_classifier import ImageClassifier

        path = CHECKPOINTS / name if folder is None else Path(folder).expanduser()
        if not (path / "config.json").is_file():
            where = "does not ship with this version of gendiff" if folder is None else "not found"
            raise WeightsNotFoundError(
                f"{name} weights {where}: {path} holds no config.json; use --extractor lite0-112."
            )
        if not any(path.glob("*.safetensors")):
            raise UnsafeFileError(f"{path} holds no safetensors, and pickled weights could run code.")
        model = ImageClassifier.from_pretrained(
            path, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        channels, side = model.config["in_channels"], model.config["sample_size"]
        if channels not in (1, 3):
            raise InvalidInputError(f"{path}: the classifier must read 1 or 3 channels, it reads {channels}.")
        sha256 = sha256_of(path)
        colours = "luma (BT.601)" if channels == 1 else "RGB"
        super().__init__(
            id=name if folder is None else with_sha(name, sha256),
            dim=model.config["feature_dim"],
            input_spec=f"{colours}, bilinear antialiased to {side}x{side}, x/127.5-1",
            weights_sha256=sha256,
        )
        self.classes: tuple[str, ...] = tuple(model.config["classes"])
        self.channels, self.side = channels, side
        self.model = model

    def extract(self, images: Tensor) -> Tensor:
        return self.model.features(self._prepare(images))

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, number of classes)."""
        return self.model(self._prepare(images))

    def extract_and_classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.extract(images)
        return features, self.model.classify(features)

    def _prepare(self, images: Tensor) -> Tensor:
        pixels = luma(images) if self.channels == 1 else images.float()
        return resized(pixels, self.side) / 127.5 - 1


def make_classifier(name: str, weights: str | Path | None) -> ClassifierExtractor:
    """Factory of the registry; `weights` is a folder."""
    return ClassifierExtractor(name, weights)
