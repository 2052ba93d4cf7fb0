from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_extractor import TinyExtractor
from torch.utils.data import TensorDataset

from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.sources import open_source
from gendiff.errors import InvalidInputError, MetricWarning, UnsafeFileError, WeightsNotFoundError
from gendiff.metrics.evaluate import evaluate
from gendiff.metrics.fd_infinity import fd_infinity
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet import frechet_distance
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.inception_score import inception_score
from gendiff.metrics.kernel_distances import cmmd, kid
from gendiff.metrics.neighbours import prdc
from gendiff.metrics.reference_stats import save_reference
from gendiff.metrics.report import MILLI

N_REAL, N_GEN = 160, 70


def pictures(count, seed, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, 8, 8, 3), dtype=np.uint8)


REAL, GEN = pictures(N_REAL, 0), pictures(N_GEN, 1, 20)


def features(images):
    return extract_features(open_source(images), TinyExtractor(), progress=False)


def run(samples=GEN, reference=REAL, metrics="fd", extractor=None, **settings):
    return evaluate(samples, reference, metrics, extractor or TinyExtractor(), progress=False, **settings)


class Levels:
    """A pipeline of grey images whose brightness is that of their class, the last class a little too dark."""

    class_names = ("dark", "grey", "light")

    def __call__(self, class_labels, generator=None, num_inference_steps=3, guidance_scale=2.0):
        levels = torch.tensor([(0.1, 0.5, 0.6)[label] for label in class_labels])
        noise = torch.stack([torch.rand(1, 8, 8, generator=one) for one in generator])
        return (levels[:, None, None, None] + 0.05 * noise,)


def test_scores_are_those_of_the_metrics_on_the_features():
    with pytest.warns(MetricWarning, match="FD∞: the smallest size 7"):
        report = run(metrics=("fd", "kid", "prdc", "fd_infinity"), seed=5, k=4)
    gen, real = features(GEN), features(REAL)
    fd, infinity = frechet_distance(gen, real), fd_infinity(gen, real, seed=5, warn=False)
    assert report["fd"].value == fd.value and report["fd"].details["mean_term"] == fd.mean_term
    assert report["fd_infinity"].value == infinity.value and report["fd_infinity"].details["r2"] == infinity.r2
    found = kid(gen, real, subset_size=N_GEN // 2, seed=5)
    assert report["kid"].value == found.mean
    assert report["kid"].details == {"std": found.std, "subsets": 100, "subset_size": N_GEN // 2}
    shares = prdc(real, gen, 4)
    for name in ("precision", "recall", "density", "coverage"):
        assert report[name].value == getattr(shares, name)
        assert report[name].details["k"] == 4 and report[name].better == "higher"
    assert list(report.scores) == ["fd", "kid", "precision", "recall", "density", "coverage", "fd_infinity"]
    assert report["fd"].label == "FD[tiny-6]" and report["fd_infinity"].label == "FD∞[tiny-6]"
    assert report["kid"].label == "KID[tiny-6]" and report["precision"].label == "precision[tiny-6], k=4"


def test_the_floor_is_the_score_of_real_images_in_the_place_of_samples():
    report = run(metrics=("fd", "kid", "prdc"), seed=3)
    order = np.random.default_rng(3).permutation(N_REAL)
    first, second = features(REAL)[order[:N_GEN]], features(REAL)[order[N_GEN:]]
    of = {"n": N_GEN, "n_real": N_REAL - N_GEN, "of": "two disjoint parts of the reference"}
    assert report["fd"].floor == {"value": frechet_distance(first, second).value, **of}
    assert report["kid"].floor["value"] == kid(first, second, subset_size=N_GEN // 2, seed=3).mean
    assert report["recall"].floor["value"] == prdc(second, first, 3).recall
    assert report["fd"].value > 3 * report["fd"].floor["value"]
    assert run(samples=pictures(90, 1))["fd"].floor["n"] == 80  # half of the reference is less than 90
    assert run(floor=False)["fd"].floor is None
    assert run(samples=REAL, reference=GEN[:7], metrics=("kid", "prdc"))["kid"].floor["n"] == 3
    assert run(samples=REAL, reference=GEN[:7], metrics="prdc")["precision"].floor is None  # k = 3 of 3 images


def test_two_sets_of_one_distribution_score_like_the_floor():
    report = run(samples=pictures(80, 7), metrics=("fd", "kid", "prdc"))
    assert report["fd"].value < 3 * report["fd"].floor["value"]
    assert abs(report["kid"].value) < 3 * report["kid"].details["std"] + abs(report["kid"].floor["value"])
    assert run(samples=REAL)["fd"].value < 1e-9


def test_a_report_says_what_its_scores_depend_on():
    report = run(num=65, num_reference=100)
    found = report.conditions
    assert (found["n_gen"], found["n_real"], found["seed"], found["batch_size"]) == (65, 100, 0, 64)
    assert found["extractor"] == {
        "id": "tiny-6",
        "label": "FD[tiny-6]",
        "dim": 6,
        "weights_sha256": "0" * 64,
        "input": "means of halves, bytes / 255",
    }
    assert found["samples"]["sha256"] == open_source(GEN).describe(65)["sha256"]
    assert found["samples"]["of"] == N_GEN and found["samples"]["chosen"] == "the first in order"
    assert found["reference"]["count"] == 100 and found["device"] == "cpu" and found["processes"] == 1
    assert {"python", "gendiff", "torch", "numpy"} <= set(found["versions"])
    assert "float32" in found["dtype"] and found["samples_in_reference"] == 0
    assert report["fd"].value == frechet_distance(features(GEN[:65]), features(REAL[:100])).value
    assert report.warnings == []
    assert run(samples=np.concatenate([GEN, REAL[:3]])).conditions["samples_in_reference"] == 3


def test_a_report_is_json_and_a_table():
    with pytest.warns(MetricWarning):
        report = run(num=40, metrics=("fd", "kid", "prdc"))
    plain = report.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["schema"] == "gendiff-evaluation/1"
    assert plain["scores"]["fd"]["value"] == report["fd"].value
    assert plain["warnings"] == report.warnings and plain["conditions"]["n_gen"] == 40
    text = report.to_markdown()
    floor = report["fd"].floor
    assert f"| FD[tiny-6] | {report['fd'].value:.4g} | {floor['value']:.4g} (N=40 / 120) | lower |" in text
    mean, std = report["kid"].value, report["kid"].details["std"]
    assert f"| KID[tiny-6] {MILLI} | {1000 * mean:.4g} ± {1000 * std:.2g} |" in text
    assert "40 samples, 160 reference images." in text
    assert f"- {report.warnings[0]}" in text
    assert f"- samples.sha256: {plain['conditions']['samples']['sha256']}" in text
    assert f"- extractor.weights_sha256: {'0' * 64}" in text


def test_a_pipeline_is_scored_with_its_settings_and_cost():
    source = PipelineSource(Levels(), N_GEN, seed=4, labels="balanced", num_inference_steps=2)
    report = run(source, metrics=("fd", "accuracy"), batch_size=5)
    found = report.conditions["samples"]
    assert found["kind"] == "pipeline" and found["seeds"] == [4, 4 + N_GEN - 1]
    assert (found["steps"], found["guidance"], found["labels"]) == (2, 2.0, "balanced")
    assert report.conditions["sampling_cost"]["images"] == 72
    assert report["fd"].value == run(source.read(range(N_GEN)))["fd"].value
    # light images are painted grey: wrong in every third
    assert report["accuracy"].value == pytest.approx(2 / 3, abs=0.02)
    assert report["accuracy"].floor is None  # classes of the reference are not known
    labelled = TensorDataset(torch.stack(list(source)), torch.arange(N_GEN) % 2)
    floor = run(source, labelled, metrics="accuracy")["accuracy"].floor
    assert floor["of"] == "the reference" and 0.3 < floor["value"] < 0.7


def test_metrics_that_need_a_classifier():
    class Blind(TinyExtractor):
        def classify(self, images):
            raise InvalidInputError(f"{self.id} does not classify.")

    for metric in ("is", "accuracy"):
        with pytest.raises(InvalidInputError, match="tiny-6 does not classify"):
            run(PipelineSource(Levels(), N_GEN, labels="random"), metrics=metric, extractor=Blind())
    with pytest.raises(InvalidInputError, match=r"accuracy needs the class of each sample, but array .* knows none"):
        run(metrics="accuracy")
    with pytest.raises(InvalidInputError, match="is needs the samples as images"):
        run(features(GEN), metrics="is")
    beyond = TensorDataset(torch.from_numpy(GEN).permute(0, 3, 1, 2), torch.arange(N_GEN))
    with pytest.raises(InvalidInputError, match="labels run from 0 to 69, but the extractor tells 3 classes apart"):
        run(beyond, metrics="accuracy")


def test_the_inception_score_says_that_it_is_another_one():
    source = PipelineSource(Levels(), N_GEN, labels="balanced")
    with pytest.warns(MetricWarning, match=r"IS\[tiny-6\] is not the Inception score of papers"):
        report = run(source, metrics="is", seed=2)
    logits = TinyExtractor().eval().logits(source.read(range(N_GEN)))
    assert report["is"].value == pytest.approx(inception_score(logits, 10, shuffle_seed=2).mean, rel=1e-5)
    assert report["is"].floor["of"] == "the reference" and report["is"].floor["n"] == N_REAL


def test_cmmd_is_for_clip_alone():
    with pytest.raises(InvalidInputError, match=r"cmmd is defined on CLIP features; use .* not FD\[tiny-6\]"):
        run(metrics="cmmd")
    network = TinyExtractor()
    network.id = "clip-tiny"
    report = run(metrics="cmmd", extractor=network)
    assert report["cmmd"].value == pytest.approx(cmmd(features(GEN), features(REAL)))


def test_an_honest_name_for_every_number():
    network = TinyExtractor()
    network.label = "FID(clean)"
    report = run(pictures(130, 1), metrics=("fd", "kid", "prdc", "fd_infinity"), extractor=network)
    labels = [report[name].label for name in ("fd", "kid", "recall", "fd_infinity")]
    assert labels == ["FID(clean)", "KID(clean)", "recall(clean), k=3", "FID∞(clean)"]
    given = run(features(GEN), features(REAL), extractor="inception-clean")
    assert given["fd"].label == "FD[inception-clean]"  # nobody has seen where these features come from


def test_features_in_the_place_of_images():
    whole = run(metrics=("fd", "kid", "prdc"))
    for samples, reference in ((features(GEN), REAL), (GEN, features(REAL)), (features(GEN), features(REAL))):
        report = run(samples, reference, ("fd", "kid", "prdc"))
        assert [one.value for one in report.scores.values()] == [one.value for one in whole.scores.values()]
        assert [one.floor for one in report.scores.values()] == [one.floor for one in whole.scores.values()]
    auto = evaluate(torch.from_numpy(features(GEN)), features(REAL), "fd", progress=False)
    assert auto["fd"].value == whole["fd"].value and auto["fd"].label == "FD[features]"
    assert auto.conditions["samples"]["kind"] == "features"
    with pytest.raises(InvalidInputError, match="cannot tell which extractor given features come from"):
        evaluate(features(GEN), REAL, "fd")
    with pytest.raises(InvalidInputError, match="features of the samples have 5 dimensions, tiny-6 has 6"):
        run(features(GEN)[:, :5])
    with pytest.raises(InvalidInputError, match="samples have features of 5 dimensions, the reference of 6"):
        run(features(GEN)[:, :5], features(REAL))
    with pytest.raises(InvalidInputError, match="samples must be finite: row 3, column 2 is nan"):
        broken = features(GEN)
        broken[3, 2] = np.nan
        run(broken)


def test_statistics_as_reference(tmp_path):
    stats = FrechetStats.from_features(features(REAL))
    known = {"extractor_id": "tiny-6", "resize": "means of halves, bytes / 255", "weights_sha256": "0" * 64}
    save_reference(tmp_path / "ref.npz", stats, **known, source_sha256="ab")
    report = run(reference=tmp_path / "ref.npz")
    assert report["fd"].value == pytest.approx(run()["fd"].value, rel=1e-9)
    assert report["fd"].floor is None and report.warnings == []
    assert report.conditions["n_real"] == N_REAL and report.conditions["reference"]["sha256"] == "ab"
    assert run(features(GEN), stats)["fd"].value == pytest.approx(report["fd"].value, rel=1e-9)
    with pytest.raises(InvalidInputError, match="holds statistics, which only fd can be taken against, not kid, prdc"):
        run(reference=tmp_path / "ref.npz", metrics=("fd", "kid", "prdc"))
    with pytest.raises(InvalidInputError, match="num_reference=5 cannot be taken from statistics"):
        run(reference=tmp_path / "ref.npz", num_reference=5)
    save_reference(tmp_path / "other.npz", stats, **known | {"extractor_id": "lite0-112"})
    with pytest.raises(InvalidInputError, match="extractor_id of the reference is 'lite0-112', of the samples"):
        run(reference=tmp_path / "other.npz")
    save_reference(tmp_path / "wide.npz", FrechetStats.from_features(np.random.default_rng(0).random((9, 7))), **known)
    with pytest.raises(InvalidInputError, match="7 dimensions"):
        run(reference=tmp_path / "wide.npz")


def test_statistics_of_unknown_origin_are_used_with_a_warning(tmp_path):
    real = features(REAL)
    np.savez(tmp_path / "edm.npz", mu=real.mean(0), sigma=np.cov(real.T))
    with pytest.warns(MetricWarning):
        report = run(reference=tmp_path / "edm.npz")
    unknown = ("extractor_id", "resize", "weights_sha256")
    assert report.warnings == [f"{name} of the reference is not known" for name in unknown]
    assert report["fd"].value == pytest.approx(run()["fd"].value, rel=1e-9)
    assert report.conditions["n_real"] is None and "an unknown number of reference" in report.to_markdown()
    with pytest.raises(InvalidInputError, match="does not say which known extractor it was made with"):
        evaluate(GEN, tmp_path / "edm.npz", "fd")
    (tmp_path / "edm.pkl").write_bytes(b"\x80")
    with pytest.raises(UnsafeFileError, match="convert it once"):
        run(reference=tmp_path / "edm.pkl")
    # a file of ours names what it was made with, but must not be able to name code to import
    save_reference(tmp_path / "evil.npz", FrechetStats.from_features(real), extractor_id="os:system")
    with pytest.raises(InvalidInputError, match=r"it says os:system"):
        evaluate(GEN, tmp_path / "evil.npz", "fd")


@pytest.mark.parametrize(
    ("count", "weights", "chosen"),
    [(9999, True, "lite0-112"), (10000, True, "inception"), (10000, False, "lite0-112")],
)
def test_auto_takes_inception_only_for_many_samples_and_if_it_is_there(monkeypatch, count, weights, chosen):
    import gendiff.metrics.extractors
    import gendiff.metrics.weights

    asked = []

    def find_weights(name, given=None):
        assert name == "inception"
        if not weights:
            raise WeightsNotFoundError("not here")

    def get_extractor(name, weights=None, device=None):
        asked.append(name)
        return TinyExtractor()

    monkeypatch.setattr(gendiff.metrics.extractors, "get_extractor", get_extractor)
    monkeypatch.setattr(gendiff.metrics.weights, "find_weights", find_weights)
    samples = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    evaluate(samples, samples[:100], "fd", batch_size=5000, floor=False, progress=False)
    assert asked == [chosen]


def test_few_images_for_a_distance():
    with pytest.raises(InvalidInputError, match=r"fd of N=5 images in d=6 dimensions is mostly bias: .* allow_small_n"):
        run(num=5)
    assert run(num=5, metrics="kid")["kid"].details["subset_size"] == 2
    with pytest.warns(MetricWarning) as caught:
        report = run(num=5, allow_small_n=True)
    assert [str(one.message) for one in caught] == report.warnings
    assert report.warnings[0].startswith("N=5 < 10·d=60; bias ≈") and report.warnings[1].startswith("error: N=5 < d=6")
    with pytest.warns(MetricWarning, match="N=59 < 10·d=60"):
        run(num=59)


def save_all(folder, images, suffix):
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.{suffix}")
    return folder


def test_jpeg_against_png(tmp_path):
    png, jpg = save_all(tmp_path / "png", REAL, "png"), save_all(tmp_path / "jpg", GEN, "jpg")
    with pytest.warns(MetricWarning, match="samples are JPEG, the reference is PNG: JPEG compression alone moves"):
        report = run(jpg, png)
    assert report.conditions["samples"]["format"] == "JPEG"
    with pytest.warns(MetricWarning, match="samples are uint8, the reference is JPEG"):
        run(REAL, jpg)
    assert run(jpg, jpg)["fd"].value < 1e-9
    assert run(png, png, workers=0)["fd"].value < 1e-9


def test_sizes_that_differ(tmp_path):
    with pytest.warns(MetricWarning, match="samples and reference differ in size, 8x8 and 4x4"):
        run(GEN, REAL[:, ::2, ::2])
    report = run(GEN, REAL[:, ::2, ::2], resize=4)
    assert report.warnings == [] and report.conditions["samples"]["size"] == [4, 4]


def test_training_images_among_the_samples():
    samples = GEN.copy()
    samples[[4, 9, 60]] = REAL[:3]
    message = "memorised or leaked: 3 of 70 samples are training images, the first is image 4 of array 70x8x8x3"
    with pytest.warns(MetricWarning, match=message):
        report = run(samples, pictures(N_REAL, 9), train=REAL)
    assert report.conditions["samples_in_train"] == 3 and report.conditions["train"]["count"] == N_REAL
    with pytest.warns(MetricWarning, match="memorised or leaked: 2 of 60"):
        run(samples, pictures(N_REAL, 9), train=REAL, num=60)
    clean = run(GEN, train=REAL)
    assert clean.warnings == [] and clean.conditions["samples_in_train"] == 0
    with pytest.raises(InvalidInputError, match=r"train has images of \(4, 4\), samples of \(8, 8\)"):
        run(train=REAL[:, :4, :4])
    with pytest.raises(InvalidInputError, match="training images cannot be found among features"):
        run(features(GEN), train=REAL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ("fd", "fid")}, "metrics has 'fid'; known: fd, fd_infinity, kid, prdc, cmmd, is, accuracy"),
        ({"metrics": ()}, "metrics must name each metric once and at least one"),
        ({"metrics": ("fd", "fd")}, "metrics must name each metric once"),
        ({"num": 71}, "num=71 images of the samples are asked for, but array 70x8x8x3 holds 70"),
        ({"num": 1}, "num of the samples must be a whole number of at least 2, got 1"),
        ({"num_reference": 161}, "num=161 images of the reference are asked for, but array 160x8x8x3 holds 160"),
        ({"samples": GEN[:1]}, "samples must hold at least 2 images, array 1x8x8x3 holds 1"),
        ({"reference": REAL[:1]}, "reference must hold at least 2 images"),
        ({"metrics": "prdc", "k": 70}, "k=70 must be below the 70 images of the samples"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"workers": 1.5}, "workers must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"resize": 0}, "resize must be a side or"),
    ],
)
def test_arguments_are_checked_before_any_work(settings, message):
    class Untouched(TinyExtractor):
        def extract(self, images):
            pytest.fail("an image was looked at")

    with pytest.raises(InvalidInputError, match=message):
        run(extractor=Untouched(), **settings)


def test_no_other_warning_than_those_of_the_report():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = run(num=40, metrics=("fd", "kid", "prdc", "fd_infinity"))
    assert [str(one.message) for one in caught] == report.warnings
    # they point at the caller
    assert {(one.category, one.filename) for one in caught} == {(MetricWarning, __file__)}
