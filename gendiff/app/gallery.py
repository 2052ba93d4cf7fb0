"""One page that shows what every built-in checkpoint does. It needs no other file, no script and no network."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from html import escape
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from string import Template

import gendiff
from gendiff.pipelines.registry import Checkpoint, builtin_checkpoints

from . import (
    causal_video_section,
    counterfactual_section,
    image_generation_section,
    lina_section,
    masked_generation_section,
    next_frequency_section,
)
from .output_folder import output_folder, write_files
from .section import Chapter, Section, Settings

# A new task: one module with a `CHAPTER`, one line here.
CHAPTERS: dict[str, Chapter] = {
    "counterfactual": counterfactual_section.CHAPTER,
    "image-generation": image_generation_section.CHAPTER,
    "causal-video": causal_video_section.CHAPTER,
    "next-frequency": next_frequency_section.CHAPTER,
    "masked-generation": masked_generation_section.CHAPTER,
    "lina": lina_section.CHAPTER,
}


def build_gallery(settings: Settings, say: Callable[[str], None] = lambda stage: None) -> Path:
    """Sample from every built-in checkpoint and write `index.html` with its pictures beside it.

    Everything is sampled before the first file is written, and the page is written last.

    Args:
        say: told each stage of the work.

    Returns: path of the page.

    Raises:
        ValueError: no checkpoint is installed, or the settings do not fit one.
        OSError: the folder cannot be written.
    """
    checkpoints = _by_task()
    with output_folder(settings.out):
        sections = {
            checkpoint.name: _build(task, checkpoint, settings, say)
            for task, members in checkpoints.items()
            for checkpoint in members
        }
        pictures = {name: content for section in sections.values() for name, content in section.files.items()}
        page = render_page(checkpoints, sections, settings)
        write_files(settings.out, {**pictures, "index.html": page.encode("utf-8")})
    return settings.out / "index.html"


def render_page(
    checkpoints: Mapping[str, list[Checkpoint]], sections: Mapping[str, Section], settings: Settings
) -> str:
    """The whole page: a chapter for each task, in it a section for each checkpoint."""
    chapters = "".join(_chapter(task, members, sections) for task, members in checkpoints.items())
    contents = "".join(
        f'<a href="#{one.name}"><b>{escape(one.name)}</b>{sections[one.name].cover}</a>'
        for members in checkpoints.values()
        for one in members
    )
    return Template(_asset("page.html")).substitute(
        style=_asset("gallery.css"), contents=contents, chapters=chapters, made=escape(_made(settings))
    )


def _chapter(task: str, members: list[Checkpoint], sections: Mapping[str, Section]) -> str:
    chapter = CHAPTERS[task]
    body = "".join(f'<section id="{one.name}">{sections[one.name].html}</section>' for one in members)
    return (
        f'<section class="chapter" id="{task}"><h2>{escape(chapter.title)}</h2>'
        f'<div class="introduction">{_asset(chapter.introduction)}</div>{body}</section>'
    )


def _asset(name: str) -> str:
    return (package_files("gendiff.app") / "assets" / name).read_text(encoding="utf-8")


def _by_task() -> dict[str, list[Checkpoint]]:
    """The built-in checkpoints, in the order of the chapters."""
    found = builtin_checkpoints().values()
    if not found:
        raise ValueError("this installation holds no built-in checkpoint, so there is nothing to show.")
    grouped = {task: [one for one in found if one.task == task] for task in CHAPTERS}
    return {task: members for task, members in grouped.items() if members}


def _build(task: str, checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    return CHAPTERS[task].build(checkpoint, settings, lambda stage: say(f"{checkpoint.name}: {stage}"))


def _made(settings: Settings) -> str:
    device = f" --device {settings.device}" if settings.device else ""
    return (
        f"gendiff demo --out {settings.out.as_posix()} --seed {settings.seed} --steps {settings.steps} "
        f"--num-images {settings.num_images}{device}, with gendiff {gendiff.__version__}, torch {version('torch')}, "
        f"Python {platform.python_version()}."
    )
