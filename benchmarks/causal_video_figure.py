"""The picture of the README: one frame of a test video, and three futures of it.

python benchmarks/causal_video_figure.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffusers.utils import logging

from gendiff.app.causal_video_pictures import forked_rollout_picture, stacked
from gendiff.app.checkpoint_data import checkpoint_dataset
from gendiff.app.pictures import png_bytes
from gendiff.files import write_whole
from gendiff.pipelines.base import pipeline

OUT = Path(__file__).parent / "results" / "causal-video-futures.png"


def main(argv: Sequence[str] | None = None) -> Path:
    """Make the picture; its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="causal-video-balls", help="built-in name or folder, of drawn videos")
    parser.add_argument("--videos", type=int, nargs="+", default=[0, 1], help="numbers of test videos to start from")
    parser.add_argument("--num-frames", type=int, default=24, help="of each future")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    pipe = pipeline("causal-video", options.model)
    pipe.set_progress_bar_config(disable=True)
    dataset = checkpoint_dataset(options.model)
    pictures, titles = [], []
    for number in options.videos:
        item = dataset[number]
        condition = {"class_labels": int(item["label"][0])} if pipe.class_names else {}
        picture = forked_rollout_picture(
            pipe,
            options.num_frames,
            seed=options.seed,
            image=item["video"][0] / 2 + 0.5,
            num_inference_steps=options.steps,
            **condition,
        )
        pictures.append(picture)
        titles.append(f"{Path(options.model).name}: first frame of test video {number}, three futures")
    write_whole(options.out, png_bytes(stacked(pictures, titles)))
    print(options.out)
    return options.out


if __name__ == "__main__":
    main()
