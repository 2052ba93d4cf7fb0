"""The probe's records and their reader."""

from __future__ import annotations

import io
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.data.pap import MASKS, PAPDataset, read_row
from gendiff.data.pap_record import Check, PAPRecord, run_checks
from gendiff.metrics.pap import pap_score


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": "somewhere.png"}


def published_row(index=0):
    """A row as the published table has it; the second of three has no masks."""
    pixels = np.full((6, 8, 3), index, dtype=np.uint8)
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[:2] = 255
    return {
        "id": f"item-{index}",
        "seed": 40 + index,
        "model": "some-model",
        "prompt": "A red ball on a small mirror.",
        "category": "optics",
        "subcategory": "reflection",
        "metadata": json.dumps({"object": "ball", "size": [1, 2]}),
        "image": png(pixels),
        **{name: None if index % 3 == 1 else png(mask) for name in MASKS},
    }


def write(path, rows, row_group_size=2):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {name: picture for name in ("image", *MASKS)} | {"seed": pyarrow.int32(), "ood": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in rows[0]])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)


def test_a_published_row_is_read_as_it_is():
    record = read_row(published_row(6))
    assert (record.id, record.seed, record.model) == ("item-6", 46, "some-model")
    assert (record.category, record.subcategory) == ("optics", "reflection")
    assert record.metadata == {"object": "ball", "size": [1, 2]}
    assert record.image.shape == (3, 6, 8) and record.image.dtype == torch.uint8 and (record.image == 6).all()
    assert record.mask_mirror is not None and record.mask_mirror.dtype == torch.bool
    assert record.mask_mirror[:2].all() and not record.mask_mirror[2:].any()
    assert (record.csg, record.factors, record.split, record.ood, record.checks) == ("", {}, "train", False, ())


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": None}])
def test_missing_masks_are_none(missing):
    record = read_row(published_row() | {"mask_object": missing})
    assert record.mask_object is None and record.mask_mirror is not None


def test_our_columns_are_read():
    checks = [{"node_id": "shadow", "hop": 1, "kind": "near", "target": 4, "tolerance": 1.5}]
    own = {"csg": '{"nodes": []}', "factors": '{"colour": "red"}', "split": "calib", "ood": True}
    record = read_row(published_row() | own | {"checks": json.dumps(checks)})
    assert record.checks == (Check("shadow", 1, "near", 4, 1.5),) and record.hops == {"shadow": 1}
    assert record.factors == {"colour": "red"} and record.csg == '{"nodes": []}'
    assert record.split == "calib" and record.ood


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": "{"}, "row 3: metadata must be JSON, got '{'"),
        ({"metadata": "[1]"}, "row 3: metadata must be a JSON dict"),
        ({"image": None}, "row 3: image must hold the bytes of a picture, got none"),
        ({"image": {"bytes": None, "path": "a.png"}}, "row 3: image must hold the bytes of a picture, it only names"),
        ({"image": {"bytes": b"none", "path": None}}, "row 3: image cannot be decoded"),
        (
            {"mask_object": png(np.zeros((2, 2), np.uint8))},
            r"row 3: mask_object must be as large as the image, \(6, 8\)",
        ),
        ({"checks": '[{"node": 1}]'}, "row 3: checks must be objects of node_id, hop, kind, target, tolerance"),
        ({"split": "dev"}, "split of record 'item-0' must be one of train, calib, test, got 'dev'"),
    ],
)
def test_unreadable_rows_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read_row(published_row() | changes, "row 3")


def test_files_are_read_in_order_a_row_group_at_a_time(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [published_row(k) for k in (3, 4)])
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [published_row(k) for k in (0, 1, 2)])
    probe = PAPDataset(tmp_path)
    assert len(probe) == 5
    assert [probe[k].id for k in (4, 0, 2, 1, 3)] == [f"item-{k}" for k in (4, 0, 2, 1, 3)]
    assert probe[-1].seed == 44 and (probe[2].image == 2).all()
    assert probe[1].mask_object is None and probe[2].mask_object is not None
    assert probe.column("seed") == [40, 41, 42, 43, 44]
    assert [record.id for record in probe] == [f"item-{k}" for k in range(5)]
    assert pickle.loads(pickle.dumps(probe))[3].id == "item-3"
    for index in (5, -6):
        with pytest.raises(IndexError, match="probe of 5 records"):
            probe[index]
    with pytest.raises(ValueError, match="name must be one of"):
        probe.column("image")
    with pytest.raises(ValueError, match="has no column 'csg'"):
        probe.column("csg")


def test_own_columns_survive_the_file(tmp_path):
    own = {"split": "test", "ood": True, "checks": '[{"node_id": "a", "hop": 0, "kind": "equal", "target": 1}]'}
    write(tmp_path / "own.parquet", [published_row() | own])
    record = PAPDataset(tmp_path / "own.parquet")[0]
    assert (record.split, record.ood, record.checks) == ("test", True, (Check("a", 0, "equal", 1),))


def test_wrong_files_are_named(tmp_path):
    row = published_row()
    del row["prompt"]
    write(tmp_path / "short.parquet", [row])
    with pytest.raises(ValueError, match=r"short\.parquet must have the columns .*; it lacks 'prompt'"):
        PAPDataset(tmp_path)
    (tmp_path / "short.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="is not a Parquet file that can be read"):
        PAPDataset(tmp_path / "short.parquet")
    for path in (tmp_path / "nothing.parquet", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match="found none"):
            PAPDataset(path)


def test_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match='needs the package "pyarrow": pip install'):
        PAPDataset(tmp_path)


def test_kinds_of_checks():
    values = torch.tensor([1.0, 1.5, 2.0, torch.nan])
    assert Check("n", 0, "equal", 1).passes(values).tolist() == [True, False, False, False]
    assert Check("n", 0, "near", 1, 0.5).passes(values).tolist() == [True, True, False, False]
    assert Check("n", 0, "at_least", 1.6, 0.1).passes(values).tolist() == [False, True, True, False]


def test_checks_run_into_scores():
    checks = [Check("sun", 0, "equal", 1), Check("shadow", 1, "near", 4, 1.5)]
    values = {"sun": torch.tensor([1, 1, 0]), "shadow": torch.tensor([4.0, 9.0, 5.0])}
    scores = pap_score(*run_checks(checks, values))
    assert {name: score.tolist() for name, score in scores.items()} == {
        "pap@0": [1, 1, 0],
        "pap@1": [1, 0, 1],
        "pap_all": [1, 0, 0],
    }
    with pytest.raises(ValueError, match="values must hold node 'shadow', got sun"):
        run_checks(checks, {"sun": values["sun"]})
    with pytest.raises(ValueError, match="one for each node, 'sun' has 2"):
        run_checks([checks[0], checks[0]], values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 0, "equal", 1), "node_id must be a name"),
        (("n", -1, "equal", 1), "hop of check 'n' must be an integer of at least 0, got -1"),
        (("n", 0, "exact", 1), "kind of check 'n' must be one of equal, near, at_least, got 'exact'"),
        (("n", 0, "near", float("nan")), "target of check 'n' must be a finite number"),
        (("n", 0, "near", 1, -1.0), "tolerance of check 'n' must be at least 0"),
        (("n", 0, "equal", 1, 0.5), "and 0 for 'equal', got 0.5"),
    ],
)
def test_wrong_checks_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Check(*arguments)


def test_a_record_has_one_check_for_each_node():
    check = Check("n", 0, "equal", 1)
    with pytest.raises(ValueError, match="'n' has 2"):
        PAPRecord("id", 0, "m", "p", "c", "s", {}, torch.zeros(3, 2, 2), checks=(check, check))
