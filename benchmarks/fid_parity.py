"""Is our FID the FID of others? The same pictures and weights through gendiff, torch-fidelity and clean-fid.

The pictures are seeded crops of photographs, the weights of Inception are random: what is asked is whether programs
agree, and for that any weights do. Then the time of extraction is compared with torch-fidelity's, turn by turn.

Writes results/fid-parity.json and a report in Markdown (.md).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import positive, say, seconds
from fid_parity_tables import to_markdown
from harness import figures
from noise import load
from paired import compare_runs
from PIL import Image
from provenance import environment, origin
from random_inception import write_random_inception
from report import write_result
from torch import Tensor

from gendiff.data.sources import open_source
from gendiff.errors import MetricWarning
from gendiff.files import write_whole
from gendiff.metrics.extractors import get_extractor
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet import frechet_distance

BAR = 1e-6
"""Largest relative difference of two programs' FID."""
SIDE, CROP, JPEG_QUALITY = 64, 96, 50
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
"""Colour photographs inside the package scikit-image."""
BATCH = 25
LAYERS = ("2048", "192")
"""torch-fidelity's names of the features compared: those of FID, and an inner layer that is narrower than there are
images, so that no covariance is singular."""


def main(argv: list[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=MetricWarning)
    env = environment("cpu", "float32")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_random_inception(folder / "random-inception.pth", args.seed)
        folders = [folder / "real", folder / "generated"]
        write_pictures(folders, args.num, args.seed)
        rows = [*legacy_tf(folders, weights), clean(folders, weights)]
        cases = [row_case(row, args) for row in rows]
        cases.append(extraction_case(folders[0], weights, args))
    env["load_after"] = load()
    result = {
        **origin(),
        "env": env,
        "settings": {"num_images": args.num, "side": SIDE, "seed": args.seed, "bar": BAR, "versions": versions()},
        "cases": cases,
    }
    write_result(args.output, result)
    text = to_markdown(result)
    write_whole(args.output.with_suffix(".md"), text)
    print(text)
    return args.output


def write_pictures(folders: list[Path], num: int, seed: int) -> None:
    """`num` PNG files of SIDE x SIDE in each folder: crops of photographs, the second set's through JPEG."""
    import skimage.data

    photos = [getattr(skimage.data, name)() for name in PHOTOS]
    rng = np.random.default_rng(seed)
    for folder, lossy in zip(folders, (False, True), strict=True):
        folder.mkdir()
        for index in range(num):
            photo = photos[index % len(photos)]
            top, left = (int(rng.integers(0, length - CROP + 1)) for length in photo.shape[:2])
            crop = Image.fromarray(photo[top : top + CROP, left : left + CROP]).resize(
                (SIDE, SIDE), Image.Resampling.BOX
            )
            if lossy:
                buffer = io.BytesIO()
                crop.save(buffer, "JPEG", quality=JPEG_QUALITY)
                crop = Image.open(buffer)
            crop.save(folder / f"{index:05d}.png")


def legacy_tf(folders: list[Path], weights: Path) -> list[dict[str, Any]]:
    """Against torch-fidelity: its whole program, from files to the number, by each of LAYERS."""
    import torch_fidelity
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    key = "frechet_inception_distance"
    cache, found = weights.parent / "cache", []
    sha256, ours = our_features("legacy-tf", folders, weights)
    for layer in LAYERS:
        say(f"torch-fidelity, {layer} features")
        theirs = torch_fidelity.calculate_metrics(
            input1=str(folders[0]),
            input2=str(folders[1]),
            input1_cache_name=folders[0].name,
            input2_cache_name=folders[1].name,
            fid=True,
            feature_layer_fid=layer,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights),
            batch_size=BATCH,
            cuda=False,
            cache_root=str(cache),
            save_cpu_ram=True,
            verbose=False,
        )[key]
        # It keeps the features it has used, so they need not be computed again to be compared.
        files = [cache / f"{folder.name}-inception-v3-compat-features-{layer}.pt" for folder in folders]
        peer = [torch.load(file, weights_only=True) for file in files]
        stats = fid_features_to_statistics(peer[0])
        row = compared(f"legacy-tf, {layer} features", "torch-fidelity", ours[layer], [part.numpy() for part in peer])
        found.append(
            {
                **row,
                "weights_sha256": sha256,
                "fid_of_peer": float(theirs),
                "relative_difference": abs(row["fid"] - theirs) / theirs,
                "set_to_itself": frechet_distance(ours[layer][0], ours[layer][0]).value,
                "set_to_itself_of_peer": float(fid_statistics_to_metric(stats, stats, False)[key]),
            }
        )
    return found


def clean(folders: list[Path], weights: Path) -> dict[str, Any]:
    """Against clean-fid: its files, resize, batches and network. Its Fréchet distance does not run on every SciPy."""
    import cleanfid.fid
    import cleanfid.inception_pytorch as inception

    say("clean-fid")
    # clean-fid downloads its weights, unless the function that does so hands out ours.
    download = inception.load_state_dict_from_url
    inception.load_state_dict_from_url = lambda *_, **__: torch.load(weights, weights_only=True)
    try:
        network = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    finally:
        inception.load_state_dict_from_url = download

    def model(x: Tensor) -> Tensor:
        return network((x - 128) / 128)[0].flatten(1)

    peer = [
        cleanfid.fid.get_folder_features(
            str(folder), model, num_workers=0, batch_size=BATCH, device=torch.device("cpu"), mode="clean", verbose=False
        )
        for folder in folders
    ]
    sha256, ours = our_features("clean", folders, weights)
    return {**compared("clean, 2048 features", "clean-fid", ours["2048"], peer), "weights_sha256": sha256}


def our_features(mode: str, folders: list[Path], weights: Path) -> tuple[str | None, dict[str, list[np.ndarray]]]:
    """sha256 of the weights, and by layer the features of both folders, of one reading."""
    say(f"gendiff, {mode}")
    extractor: Any = get_extractor(f"inception-{mode}", weights=weights)
    inner: list[Tensor] = []
    hook = extractor.network.MaxPool_2.register_forward_hook(lambda *seen: inner.append(seen[-1].mean((2, 3))))
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    for folder in folders:
        inner.clear()
        found["2048"].append(extract_features(open_source(str(folder)), extractor, batch_size=BATCH, progress=False))
        found["192"].append(torch.cat(inner).double().numpy())
    hook.remove()
    return extractor.weights_sha256, found


def compared(mode: str, name: str, ours: list[np.ndarray], peer: list[np.ndarray]) -> dict[str, Any]:
    """Our distance of our features, and of the peer's."""
    value = frechet_distance(ours[0], ours[1]).value
    of_peer = frechet_distance(peer[0].astype(np.float64), peer[1].astype(np.float64)).value
    return {
        "row": f"{mode}, against {name}",
        "fid": value,
        "fid_of_peers_features": of_peer,
        "relative_difference_by_features": abs(value - of_peer) / of_peer,
        "max_abs_difference_of_features": float(max(np.abs(a - b).max() for a, b in zip(ours, peer, strict=True))),
        "largest_feature": float(max(rows.max() for rows in ours)),
    }


def row_case(row: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A row of the result file."""
    names = [name for name, value in row.items() if isinstance(value, float)]
    cells = [{"metric": name, "value": row[name], "n": args.num} for name in names]
    return {"row": row["row"], "seed": args.seed, "weights_sha256": row["weights_sha256"], "cells": cells}


def fidelity_extraction(folder: Path, weights: Path, num: int) -> Callable[[], Tensor]:
    """torch-fidelity's own extraction of a folder's first images, everything ready but the work itself."""
    from torch_fidelity.datasets import ImagesPathDataset, TransformPILtoRGBTensor
    from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

    network = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(weights), verbose=False
    )
    files = [str(path) for path in sorted(folder.glob("*.png"))[:num]]
    dataset = ImagesPathDataset(files, TransformPILtoRGBTensor())
    return lambda: get_featuresdict_from_dataset(dataset, network, BATCH, False, True, False)["2048"]


def extraction_case(folder: Path, weights: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from files to features, ours and torch-fidelity's turn by turn."""
    say("time of extraction")
    extractor = get_extractor("inception-legacy-tf", weights=weights)

    def ours() -> Tensor:
        # Opened anew for each run: a source remembers the hashes of its images, and so would do less the second time.
        rows = extract_features(open_source(str(folder)), extractor, BATCH, num=args.timed, progress=False)
        return torch.from_numpy(rows)

    peer = fidelity_extraction(folder, weights, args.timed)
    before = load()
    pair = compare_runs(ours, peer, tolerance=1e-3, warmup=1, min_pairs=args.pairs, budget_s=args.budget)
    return {
        "id": f"extraction-{args.timed}",
        "pipeline": "inception-legacy-tf",
        "checkpoint_sha256": extractor.weights_sha256,
        "shape": [3, SIDE, SIDE],
        "seed": args.seed,
        **figures(pair.ours, args.timed),
        "load_before": before,
        "load_after": load(),
        "peer": {
            "name": "torch-fidelity",
            "version": importlib.metadata.version("torch-fidelity"),
            "p50": statistics.median(pair.peer.timings_s),
            "timings_s": pair.peer.timings_s,
            "ratio_p50": pair.ratio_p50,
            "ratio_ci95": list(pair.ratio_ci95),
            "max_abs_diff": pair.max_abs_diff,
        },
    }


def versions() -> dict[str, str]:
    """Of the programs compared."""
    return {name: importlib.metadata.version(name) for name in ("torch-fidelity", "clean-fid", "scipy", "pillow")}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=positive, default=300, help="images a side (default: %(default)s)")
    parser.add_argument("--timed", type=positive, default=BATCH, help="images of a timed run (default: %(default)s)")
    parser.add_argument("--pairs", type=positive, default=10, help="timed pairs at least (default: %(default)s)")
    parser.add_argument("--budget", type=seconds, default=240.0, help="seconds of timed runs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and weights (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="of torch (default: %(default)s)")
    path = Path(__file__).parent / "results" / "fid-parity.json"
    parser.add_argument("--output", type=Path, default=path, help="default: benchmarks/results/fid-parity.json")
    return parser


if __name__ == "__main__":
    main()
