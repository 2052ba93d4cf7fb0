"""Ask "what if" about a test image and save the answer beside the truth.

python pipelines/counterfactual.py --do angle=-30 --out pendulum.png
python pipelines/counterfactual.py --model counterfactual-handwriting --do thickness=5 --out digit.png
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image

import gendiff
from gendiff.app.checkpoint_data import checkpoint_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="counterfactual-pendulum", help="built-in name, folder or hub id")
    parser.add_argument("--do", nargs="+", default=["angle=-30"], metavar="NAME=VALUE", help="one joint intervention")
    parser.add_argument("--index", type=int, default=0, help="which test image")
    parser.add_argument("--steps", type=int, default=50, help="of abduction, and as many of prediction")
    parser.add_argument("--out", default="counterfactual.png", help="picture: factual | counterfactual | truth")
    options = parser.parse_args()
    interventions = {name: float(value) for name, value in (pair.split("=") for pair in options.do)}

    pipe = gendiff.pipeline("counterfactual", options.model)
    dataset = checkpoint_dataset(options.model)
    factual = dataset[options.index]["image"]
    truth, values = dataset.counterfactual(options.index, interventions)

    out = pipe((factual[None] + 1) / 2, interventions, num_inference_steps=options.steps, output_type="pt")

    row = torch.cat([(factual + 1) / 2, out.images[0], (truth + 1) / 2], dim=2)  # (C, S, 3 S)
    array = (row.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    Image.fromarray(array).resize((row.shape[2] * 8, row.shape[1] * 8), Image.Resampling.NEAREST).save(options.out)
    for name in pipe.graph.names:
        before, after = out.factual[name].item(), out.counterfactual[name].item()
        print(f"{name:12s} {before:8.2f} -> {after:8.2f}   truth {values[name]:8.2f}")
    print(f"{options.out}: factual | counterfactual | truth, {out.stats.network_calls} network calls")


if __name__ == "__main__":
    main()
