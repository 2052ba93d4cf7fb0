"""Draw an image stage by stage, then draw it again with more and more of its first stages kept.

python pipelines/next_frequency.py --class sneaker --out sneaker.png
python pipelines/next_frequency.py --model next-scale-fashion --image shoe.png --class 7 --out shoe-again.png
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image

import gendiff


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="next-frequency-fashion", help="built-in name, folder or hub id")
    parser.add_argument("--class", dest="label", default="0", metavar="NAME", help="name or number")
    parser.add_argument("--image", help="picture to keep stages of; the one drawn first if left out")
    parser.add_argument("--guidance-scale", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", default="next-frequency.png", help="picture: after each stage | kept stages, rest drawn"
    )
    options = parser.parse_args()

    pipe = gendiff.pipeline("next-frequency", options.model)
    pipe.set_progress_bar_config(disable=True)
    label = int(options.label) if options.label.isdecimal() else options.label
    asked = {"guidance_scale": options.guidance_scale, "output_type": "pt"}
    stages = range(1, pipe.num_stages + 1)

    # The same generator draws the same tokens, so fewer stages are a preview of the same picture.
    previews = [pipe(label, num_stages=count, generator=noise(options.seed), **asked).images for count in stages]
    out = pipe(label, generator=noise(options.seed), **asked)
    for band, (side, tokens) in enumerate(zip(out.stats.plan["stages"], out.tokens, strict=True)):
        print(f"stage {band}: {side:2d} x {side:<2d} tokens, first {tokens[0, :6].tolist()}")

    # Other noise, but the first stages are known; with all of them nothing is drawn.
    image = Image.open(options.image) if options.image else out.images
    again = [
        pipe(label, image=image, keep_stages=kept, generator=noise(options.seed + 1), **asked).images for kept in stages
    ]

    rows = [torch.cat([image[0] for image in row], dim=2) for row in (previews, again)]
    sheet = torch.cat(rows, dim=1)  # (C, 2 S, K S)
    array = (sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    scale = max(1, 112 // pipe.sample_shape[1])
    picture = Image.fromarray(array)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(options.out)
    print(f"{options.out}: after each stage, above | first 1 .. {pipe.num_stages} stages kept, below")
    print(f"an image: {out.stats.network_calls} network calls, {out.stats.seconds:.3f} s")


if __name__ == "__main__":
    main()
