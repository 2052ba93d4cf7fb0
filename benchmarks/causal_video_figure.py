"""The picture of the README: one frame and three futures of it, from each causal video checkpoint.

python benchmarks/causal_video_figure.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gendiff.app.causal_video_pictures import forked_rollout_picture, stacked
from gendiff.app.pictures import png_bytes
from gendiff.files import write_whole
from gendiff.pipelines.base import pipeline

MODELS = ("causal-video-balls", "causal-video-digits")
OUT = Path(__file__).parent / "results" / "causal-video-futures.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="built-in names, or folders")
    parser.add_argument("--class", dest="class_name", default="3", help="for a model of classes")
    parser.add_argument("--num-frames", type=int, default=24, help="of each future")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    pictures, titles = [], []
    for model in options.models:
        pipe = pipeline("causal-video", model)
        pipe.set_progress_bar_config(disable=True)
        condition = {"class_labels": options.class_name} if pipe.class_names else {}
        picture = forked_rollout_picture(
            pipe, options.num_frames, seed=options.seed, num_inference_steps=options.steps, **condition
        )
        pictures.append(picture)
        titles.append(Path(model).name)
    write_whole(options.out, png_bytes(stacked(pictures, titles)))
    print(options.out)


if __name__ == "__main__":
    main()
