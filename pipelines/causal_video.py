"""Go on from a frame, for ever, in several ways, or under another class; each as a GIF.

python pipelines/causal_video.py --out out/causal-video
python pipelines/causal_video.py --model causal-video-digits --classes 3 7 --image digit.png --out out/digits
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

import gendiff
from gendiff.app.video_files import gif_bytes


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="causal-video-balls", help="built-in name, folder or hub id")
    parser.add_argument("--image", type=Path, help="first frame; drawn from nothing if left out")
    parser.add_argument("--classes", nargs=2, metavar="NAME", help="first class, and the one to switch to")
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="of each chunk's walk from noise")
    parser.add_argument("--out", type=Path, default=Path("out/causal-video"))
    options = parser.parse_args()

    pipe = gendiff.pipeline("causal-video", options.model)
    pipe.set_progress_bar_config(disable=True)
    first = {"num_inference_steps": options.steps}
    if options.image:
        first["image"] = Image.open(options.image)
    if options.classes:
        first["class_labels"] = options.classes[0]
    videos = {}

    # A video of a given length.
    out = pipe(**first, num_frames=options.num_frames, generator=noise(0), output_type="pt")
    videos["video"] = out.frames[0]

    # One without an end, of which some chunks are taken. Memory does not grow.
    endless = pipe.stream(**first, generator=noise(1))
    videos["endless"] = torch.cat([chunk.frames[0] for chunk in islice(endless, 1 + options.num_frames // 4)])

    # One past, three futures, side by side.
    session = pipe.start(**first, generator=noise(2))
    past = session.generate(1).frames if session.given is None else session.given.frames
    futures = [session.fork(noise(seed)).generate(options.num_frames).frames for seed in (3, 4, 5)]
    videos["fork"] = torch.cat([torch.cat([past, future], dim=1)[0] for future in futures], dim=-1)

    # Another class from the middle on.
    if options.classes:
        session = pipe.start(**first, generator=noise(6))
        before = session.generate(options.num_frames // 2).frames
        session.set_condition(class_labels=options.classes[1])
        videos["switch"] = torch.cat([before, session.generate(options.num_frames // 2).frames], dim=1)[0]

    options.out.mkdir(parents=True, exist_ok=True)
    for name, frames in videos.items():
        path = options.out / f"{name}.gif"
        path.write_bytes(gif_bytes(frames, fps=8, scale=4))
        print(f"{path}: {len(frames)} frames")
    print(f"video: {out.stats.network_calls} network calls, cache {out.stats.cache_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
