"""Draw an image from hidden tokens, once by full steps alone and once with light ones, and fill in a part of it.

python pipelines/masked_generation.py --class sneaker --out sneaker.png
python pipelines/masked_generation.py --class bag --steps 24 --light 1 --warmup 8 --out bag.png
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
    parser.add_argument("--model", default="maskgit-fashion", help="built-in name, folder or hub id")
    parser.add_argument("--class", dest="label", default="0", metavar="NAME", help="name or number")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--light", type=int, default=1, help="light steps after each full one")
    parser.add_argument("--warmup", type=int, default=4, help="full steps at the start that have none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="masked-generation.png", help="picture: base | light steps | hole | filled in")
    options = parser.parse_args()

    pipe = gendiff.pipeline("masked-generation", options.model)
    pipe.set_progress_bar_config(disable=True)
    label = int(options.label) if options.label.isdecimal() else options.label
    asked = {"num_inference_steps": options.steps, "output_type": "pt"}
    recap = gendiff.ReCAPConfig(num_light_steps=options.light, num_warmup_groups=options.warmup)

    base = pipe(label, generator=noise(options.seed), **asked)
    light = pipe(label, generator=noise(options.seed), recap=recap, **asked)
    for name, out in (("base", base), ("ReCAP", light)):
        full = len(out.stats.plan["groups"])
        steps = sum(len(group) for group in out.stats.plan["groups"])
        cost = f"{out.stats.flops / 1e9:.2f} GFLOP, {out.stats.seconds:.2f} s"
        print(f"{name:5s} {full} full and {steps - full} light steps, {cost}")

    # The step at which each token was decided, as the tokens lie in the picture.
    rows, columns = pipe.image_tokenizer.grid
    for row in light.revealed_at[0].view(rows, columns).tolist():
        print(" ".join(f"{step + 1:2d}" for step in row))

    # A hole in the middle of the first image, filled in by other noise.
    side = base.images.shape[-1]
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 3 : side - side // 3, side // 3 : side - side // 3] = 1
    filled = pipe(label, image=base.images, mask_image=mask, generator=noise(options.seed + 1), **asked)

    pictures = [base.images, light.images, base.images * (1 - mask) + mask / 2, filled.images]
    sheet = torch.cat([picture[0] for picture in pictures], dim=2)  # (C, S, 4 S)
    array = (sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    scale = max(1, 112 // side)
    picture = Image.fromarray(array)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(options.out)
    print(f"{options.out}: full steps alone | with light steps | a hole in the first | filled in")


if __name__ == "__main__":
    main()
