"""What the gallery asks of every task: one section for each of its built-in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gendiff.pipelines.registry import Checkpoint


@dataclass(frozen=True)
class Settings:
    """How the gallery is made.

    Attributes:
        out: folder of the page; commands on it name files there.
        seed: chooses the test images.
        steps: sampling steps of every picture.
        num_images: test images shown for each checkpoint.
        device: e.g. "cuda"; None for the CPU.

    Raises:
        ValueError: a number is out of range.
    """

    out: Path
    seed: int = 0
    steps: int = 50
    num_images: int = 7
    device: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("steps", 1), ("num_images", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


@dataclass(frozen=True)
class Section:
    """A checkpoint's part of the page.

    Attributes:
        html: body of its `<section>`, heading included.
        cover: HTML of what stands below its name in the list of contents.
        files: content by path relative to the page's folder.
    """

    html: str
    cover: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Chapter:
    """How the gallery shows a task.

    Attributes:
        title: its heading.
        introduction: file in assets/ with the HTML that says what the pictures below it are.
        build: makes the section of one checkpoint; it is handed a function to announce each stage with.
    """

    title: str
    introduction: str
    build: Callable[[Checkpoint, Settings, Callable[[str], None]], Section]
