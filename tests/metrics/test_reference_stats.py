"""Files of statistics: what is written comes back, what others write is read, and what could run code is not."""

import io
import pickle

import numpy as np
import pytest

import gendiff
from gendiff.errors import InvalidInputError, UnsafeFileError
from gendiff.metrics.frechet import FrechetStats, frechet_distance
from gendiff.metrics.reference_stats import ReferenceStats, check_comparable, load_reference, save_reference

PROVENANCE = {
    "extractor_id": "lite0-112",
    "resize": "bilinear",
    "weights_sha256": "ab" * 32,
    "source_sha256": "cd" * 32,
}


def stats_of(seed=0, count=40, dim=3):
    return FrechetStats(dim).update(np.random.default_rng(seed).standard_normal((count, dim)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ref.npz"


def test_what_is_written_comes_back(path):
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    save_reference(path, stats_of(), spatial=stats_of(1, dim=2), images=images, **PROVENANCE)
    loaded = load_reference(path, images=True)
    for found, written in ((loaded.stats, stats_of()), (loaded.spatial, stats_of(1, dim=2))):
        np.testing.assert_array_equal(found.mean, written.mean)
        np.testing.assert_array_equal(found.cov, written.cov)
        assert found.n == 40
    np.testing.assert_array_equal(loaded.images, images)
    assert {name: getattr(loaded, name) for name in PROVENANCE} == PROVENANCE
    assert loaded.gendiff_version == gendiff.__version__


def test_statistics_save_and_load_themselves(path):
    stats = stats_of()
    stats.save(path, **PROVENANCE)
    assert frechet_distance(FrechetStats.load(path), stats).value == pytest.approx(0, abs=1e-12)
    assert load_reference(path).resize == "bilinear"


def test_the_file_is_what_other_libraries_read(path):
    save_reference(path, stats_of(), **PROVENANCE)
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"mu", "sigma", "n", "gendiff_version", *PROVENANCE}
        assert (file["mu"].shape, file["sigma"].shape) == ((3,), (3, 3))
        assert (file["mu"].dtype, file["sigma"].dtype) == (np.float64, np.float64)


def test_equal_statistics_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        save_reference(tmp_path / f"{name}.npz", stats_of(), **PROVENANCE)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_files_of_other_libraries_say_less(path):
    np.savez(path, mu=stats_of().mean, sigma=stats_of().cov, arr_0=np.zeros((2, 8, 8, 3), dtype=np.uint8))
    loaded = load_reference(path)
    np.testing.assert_array_equal(loaded.stats.cov, stats_of().cov)
    assert (loaded.stats.n, loaded.extractor_id, loaded.spatial, loaded.images) == (None, None, None, None)


# Files that are not read


@pytest.mark.parametrize("name", ["ref.pkl", "ref.pickle", "ref.PTH", "ref.npz"])
def test_a_pickle_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"mu": 0, "sigma": 0}))
    with pytest.raises(
        UnsafeFileError, match=r"is a pickle, .* convert it once: numpy.savez\('ref.npz', mu=..., sigma="
    ):
        FrechetStats.load(tmp_path / name)


def test_python_objects_are_refused(path):
    np.savez(path, mu=np.array([object()]), sigma=np.eye(1))
    with pytest.raises(UnsafeFileError, match="holds Python objects and was not read"):
        load_reference(path)


def npz(**entries):
    buffer = io.BytesIO()
    np.savez(buffer, **entries)
    return buffer.getvalue()


WHOLE = npz(mu=np.zeros(200), sigma=np.eye(200))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole .npz file"),
        (b"mu,sigma", "is not a whole .npz file"),
        (WHOLE[: len(WHOLE) // 2], "is not a whole .npz file"),
        (WHOLE.replace(np.eye(200)[100].tobytes(), np.eye(200)[101].tobytes(), 1), "is not a whole .npz file: Bad CRC"),
        (npz(arr_0=np.zeros(2)), "holds no statistics: it needs mu and sigma, and has arr_0"),
        (npz(mu=np.zeros(2), sigma=np.eye(3)), r"ref.npz: mean must have shape \(d,\) and cov \(d, d\)"),
        (npz(mu=np.zeros((2, 2, 2)), sigma=np.eye(3)), "ref.npz: mean must have shape"),
        (npz(mu=np.array(["x"]), sigma=np.eye(1)), "ref.npz: mean must be real numbers"),
        (npz(mu=np.array([np.nan]), sigma=np.eye(1)), "ref.npz: mean must be finite"),
        (npz(mu=np.zeros(1), sigma=np.eye(1), n=np.arange(2)), "ref.npz: "),
        (npz(mu=np.zeros(1), sigma=np.eye(1), n=1), "ref.npz: n must be a whole number of at least 2, got 1"),
    ],
)
def test_files_that_hold_no_statistics(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        load_reference(path)


def test_no_file_and_no_images(path):
    with pytest.raises(InvalidInputError, match=r"statistics .*ref.npz do not exist"):
        load_reference(path)
    save_reference(path, stats_of())
    with pytest.raises(InvalidInputError, match="holds no images: it needs arr_0"):
        load_reference(path, images=True)


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    with pytest.raises(InvalidInputError, match=r"written to a .npz file, got .*ref.pkl"):
        stats_of().save(tmp_path / "ref.pkl")
    with pytest.raises(InvalidInputError, match="needs at least 1 image"):
        FrechetStats(3).save(tmp_path / "ref.npz")
    with pytest.raises(InvalidInputError, match=r"images must be uint8 \(N, H, W, 3\), got float64 \(2, 2\)"):
        save_reference(tmp_path / "ref.npz", stats_of(), images=np.zeros((2, 2)))
    assert list(tmp_path.iterdir()) == []


# Comparing


def test_equal_conditions_may_be_compared():
    given = {name: text for name, text in PROVENANCE.items() if name != "source_sha256"}
    assert check_comparable(ReferenceStats(stats_of(), **given), ReferenceStats(stats_of(1), **given)) == ()


@pytest.mark.parametrize(
    ("name", "other"), [("extractor_id", "inception"), ("resize", "bicubic"), ("weights_sha256", "ef" * 32)]
)
def test_other_conditions_may_not(name, other):
    samples = ReferenceStats(stats_of(), **{**PROVENANCE, name: other})
    with pytest.raises(InvalidInputError, match=f"{name} of the reference is '{PROVENANCE[name]}', of the samples"):
        check_comparable(ReferenceStats(stats_of(), **PROVENANCE), samples)


def test_what_is_not_known_is_said():
    notes = check_comparable(ReferenceStats(stats_of(), resize="bilinear"), ReferenceStats(stats_of(), **PROVENANCE))
    assert notes == ("extractor_id of the reference is not known", "weights_sha256 of the reference is not known")


def test_other_dimensions_may_not_be_compared():
    with pytest.raises(InvalidInputError, match="reference has features of 3 dimensions, the samples of 2"):
        check_comparable(ReferenceStats(stats_of()), ReferenceStats(stats_of(dim=2)))
