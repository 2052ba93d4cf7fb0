"""Draw a prompt with the plain model and with LINA from the same noise, and see which causes and effects are right.

python pipelines/lina.py --out pole.png
python pipelines/lina.py --prompt "a short blue pole, high sun on the left, a plant near right" --lam 1 --stop 0.4
python pipelines/lina.py --model lina-swap --prompt "a circle above a square"
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image

import gendiff


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lina-shadows", help="built-in name, folder or hub id")
    parser.add_argument("--prompt", default="a tall red pole, high sun on the right, a plant near right")
    parser.add_argument("--lam", type=float, help="strength of the contrast; else what the predictor says")
    parser.add_argument("--stop", type=float, default=0.4, help="share of noise at which a contrast by hand ends")
    parser.add_argument("--num-images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="lina.png", help="picture: the plain model above, LINA below")
    options = parser.parse_args()

    pipe = gendiff.pipeline("lina", options.model)
    pipe.set_progress_bar_config(disable=True)

    # The world that the model was made for has a verifier, which reads colours and counts pixels.
    world = gendiff.load_dataset(pipe.config["world"], num_images=4) if pipe.config["world"] else None

    # What the prompt says (hop 0), what follows from that (hop 1), and what follows in turn (hop 2).
    graph = pipe.grammar.parse(options.prompt)
    for hop in range(1 + max(graph.hops().values())):
        print(f"hop {hop}: {', '.join(name for name, own in graph.hops().items() if own == hop)}")
    print(f"contrast against: {pipe.grammar.counterfactual(options.prompt)}")

    by_hand = None if options.lam is None else gendiff.Intervention(lam=options.lam, window=(1.0, options.stop))
    rows = []
    # None asks the predictor, where the model has one.
    for name, intervention in (("plain", "off"), ("LINA", by_hand)):
        out = pipe(
            options.prompt,
            num_inference_steps=options.steps,
            intervention=intervention,
            num_images_per_prompt=options.num_images,
            generator=[torch.Generator().manual_seed(options.seed + i) for i in range(options.num_images)],
            output_type="pt",
        )
        rows.append(torch.cat(list(out.images), dim=2))  # (C, S, num_images S)
        print(f"{name}: {out.nfe[0]:g} network rows an image, {out.interventions[0].to_json()}")
        if world is not None:
            checks = world.check(2 * out.images - 1, [graph.text()] * options.num_images)
            scores = gendiff.pap_score(checks, graph.hops())
            print("  " + ", ".join(f"{score} {values.mean():.2f}" for score, values in scores.items()))

    array = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    scale = max(1, 112 // out.images.shape[-1])
    picture = Image.fromarray(array)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(options.out)
    print(f"{options.out}: the plain model above, LINA below")


if __name__ == "__main__":
    main()
