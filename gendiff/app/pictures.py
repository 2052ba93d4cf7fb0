"""Small pictures put together: enlarged, labelled, arranged in a grid or a strip."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, FRAME, PAPER = (38, 38, 38), (222, 222, 222), (255, 255, 255)
FONT_SIZE = 14
GAP = 8


def to_pil(image: Tensor, scale: int = 1) -> Image.Image:
    """A PIL image of `image` (C, H, W) in [0, 1], each pixel a square of side `scale`.

    Values outside [0, 1] are clipped. One channel gives a grey picture, three a coloured one.

    Raises:
        ValueError: not 1 or 3 channels, a value that is not a number, or `scale` is not a whole number above 0.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image must be (1 or 3, H, W), got {tuple(image.shape)}.")
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale!r}.")
    values = image.detach().float().cpu()
    if values.isnan().any():
        raise ValueError("image holds values that are not numbers.")
    pixels = (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    gap: int = GAP,
    font_size: int = FONT_SIZE,
    background: tuple[int, int, int] = PAPER,
) -> Image.Image:
    """Pictures in rows, with labels to the left of the rows and above the columns.

    Cells have the size of the largest picture; smaller ones are centred. A hairline frames each, in the gap. Rows may
    differ in length. Columns are widened where a label needs it; a label with line breaks takes several lines.

    Raises:
        ValueError: no pictures, or as many labels as there are rows or columns are not given.
    """
    _check_grid(rows, row_labels, column_labels)
    font = ImageFont.load_default(font_size)
    row_sizes = [_text_size(text, font) for text in row_labels or ()]
    column_sizes = [_text_size(text, font) for text in column_labels or ()]
    pictures = [picture for row in rows for picture in row]
    width = max(width for width, _ in [*(picture.size for picture in pictures), *column_sizes])
    height = max(height for _, height in [*(picture.size for picture in pictures), *row_sizes])
    left = gap + max((width + gap for width, _ in row_sizes), default=0)
    top = gap + max((height + gap for _, height in column_sizes), default=0)
    x = [left + (width + gap) * j for j in range(max(len(row) for row in rows))]
    y = [top + (height + gap) * i for i in range(len(rows))]

    sheet = Image.new("RGB", (x[-1] + width + gap, y[-1] + height + gap), background)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            left_edge, top_edge = x[j] + (width - picture.width) // 2, y[i] + (height - picture.height) // 2
            frame = (left_edge - 1, top_edge - 1, left_edge + picture.width, top_edge + picture.height)
            draw.rectangle(frame, outline=FRAME)
            sheet.paste(picture, (left_edge, top_edge))
    for i, text in enumerate(row_labels or ()):
        draw.multiline_text((left - gap, y[i] + height / 2), text, INK, font, anchor="rm", align="right")
    for j, text in enumerate(column_labels or ()):
        draw.multiline_text((x[j] + width / 2, top / 2), text, INK, font, anchor="mm", align="center")
    return sheet


def strip(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    gap: int = GAP,
    font_size: int = FONT_SIZE,
) -> Image.Image:
    """Pictures side by side, each with its caption above. Arguments and errors as in `grid`."""
    return grid([list(images)], column_labels=captions, gap=gap, font_size=font_size)


def png_bytes(image: Image.Image) -> bytes:
    """Content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _check_grid(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str] | None, column_labels: Sequence[str] | None
) -> None:
    count = max((len(row) for row in rows), default=0)
    if count == 0:
        raise ValueError("rows must hold at least one picture.")
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"row_labels must be {len(rows)}, one for each row, got {len(row_labels)}.")
    if column_labels is not None and len(column_labels) != count:
        raise ValueError(f"column_labels must be {count}, one for each column, got {len(column_labels)}.")


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Width and height in pixels."""
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return round(box[2]), round(box[3])
