"""Pictures of emoji from the colour font Noto Color Emoji, whose bitmaps are 136x128 pixels at font size 109."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from gendiff.errors import InvalidInputError

DEBIAN_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Where the Debian package `fonts-noto-color-emoji` keeps the font."""

FONT_FILE = DEBIAN_FONT.name
FONT_SIZE = 109
"""The one size the font has bitmaps of."""
WIDTH, HEIGHT = 136, 128


def open_font(source: str | Path | None = None) -> tuple[Path, ImageFont.FreeTypeFont]:
    """The font and its path.

    Args:
        source: the font file or a folder with `NotoColorEmoji.ttf`; without it, the file of the Debian package.

    Raises:
        FileNotFoundError: no font there.
        InvalidInputError: not a font with colour bitmaps of the size above.
        ImportError: Pillow was built without raqm, which joins the parts of a sequence into one glyph.
    """
    path = DEBIAN_FONT if source is None else Path(source)
    if path.is_dir():
        path = path / FONT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"the emoji font {path} does not exist: install the Debian package fonts-noto-color-emoji, or give the"
            f" path of a {FONT_FILE}."
        )
    if not features.check("raqm"):
        raise ImportError("emoji need a Pillow with raqm to join sequences; the wheels on PyPI have it.")
    try:
        font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise InvalidInputError(f"{path} is not a font with colour bitmaps of size {FONT_SIZE}: {error}.") from error
    if not _is_colour(draw(font, "\N{GRINNING FACE}")):
        raise InvalidInputError(f"{path} has no {WIDTH}x{HEIGHT} colour picture of U+1F600; use {FONT_FILE}.")
    return path, font


def draw(font: ImageFont.FreeTypeFont, sequence: str) -> Image.Image | None:
    """The one glyph of a sequence, RGBA (136, 128); None if the font has none or draws it as several side by side."""
    left, top, right, bottom = font.getbbox(sequence)
    if (right - left, bottom - top) != (WIDTH, HEIGHT):
        return None
    image = Image.new("RGBA", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).text((-left, -top), sequence, font=font, embedded_color=True)
    return image


def on_white(glyph: Image.Image, size: int) -> np.ndarray:
    """The glyph in the middle of a white square, shrunk by Lanczos' filter over all pixels: (size, size, 3) uint8."""
    square = Image.new("RGBA", (WIDTH, WIDTH), "white")
    square.alpha_composite(glyph, (0, (WIDTH - HEIGHT) // 2))
    return np.array(square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def _is_colour(glyph: Image.Image | None) -> bool:
    if glyph is None:
        return False
    pixels = np.array(glyph.convert("RGB"), np.int16)
    return int(np.ptp(pixels, axis=2).max()) > 0
