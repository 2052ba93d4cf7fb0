"""`gendiff sample causal-video`: a video of any length, chunk after chunk, or one without an end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def sample_causal_video(
    out: Annotated[Path, typer.Option(help="Folder for frames, video.gif, video.mp4 and run.json.")],
    image: Annotated[Path | None, typer.Option(help="Picture to go on from.")] = None,
    video: Annotated[
        Path | None, typer.Option(help="First frames: a folder of pictures, .gif, .npy or .mp4; instead of --image.")
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Scale and crop them to the model's size; else another size is an error.")
    ] = False,
    num_frames: Annotated[
        int | None, typer.Option(help="Of the whole video, given ones included; 64, or with --stream no end.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write frames as they come; Ctrl-C ends the video and keeps it.")
    ] = False,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Name or number, for a model of classes.")
    ] = None,
    model: Annotated[str, typer.Option(help="Built-in checkpoint, folder or hub repository.")] = "causal-video-balls",
    steps: Annotated[int, typer.Option(help="Steps of each chunk's walk from noise.")] = 20,
    guidance_scale: Annotated[float, typer.Option(help="Towards the class; 1 is off.")] = 1.0,
    chunk: Annotated[int | None, typer.Option(help="Frames made together; as in training if left out.")] = None,
    context: Annotated[int | None, typer.Option(help="Most frames a chunk sees; as in training if left out.")] = None,
    sinks: Annotated[int, typer.Option(help="First frames that every chunk goes on to see.")] = 0,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Without: all frames anew at every step; exact and slow.")
    ] = True,
    refresh: Annotated[
        str, typer.Option(metavar="never|always|K", help="Rebuild the cache before each chunk, or each K.")
    ] = "never",
    fps: Annotated[float, typer.Option(help="Frames a second that the files play at, up to 50.")] = 8,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """A video of any length."""
    arguments: dict[str, Any] = dict(locals())
    from gendiff.app import causal_video_run
    from gendiff.app.causal_video_folder import VideoFiles
    from gendiff.app.output_folder import output_folder

    order = causal_video_run.Order(
        model=model,
        image=image,
        video=video,
        resize=resize,
        num_frames=64 if num_frames is None and not stream else num_frames,
        class_name=class_name,
        options={
            "chunk_size": chunk,
            "context_frames": context,
            "sink_frames": sinks,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "use_cache": cache,
            "cache_refresh": _parse_refresh(refresh),
        },
        seed=seed,
        device=device,
        fps=fps,
    )
    folder = VideoFiles(out, video or image)
    with output_folder(out):
        if stream:
            summary = causal_video_run.stream(order, folder, arguments, typer.echo)
        else:
            summary = causal_video_run.run(order, folder, arguments)
    typer.echo(f"{summary}\n{', '.join(folder.names())} in {out}")


def _parse_refresh(text: str) -> str | int:
    if text in ("never", "always"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--refresh must be never, always or a whole number of chunks of at least 1, got {text!r}.")
    return int(text)
