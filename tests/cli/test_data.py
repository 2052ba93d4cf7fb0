from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from gendiff.cli import main
from gendiff.data import DATASETS, fashion_mnist
from gendiff.data.emoji_render import DEBIAN_FONT


def test_list_prints_every_card_and_whole_commands(tmp_path, capsys):
    assert main(["data", "list", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    status = {words[0]: words[1:3] for words in map(str.split, lines) if words and words[0] in DATASETS}
    assert set(status) == set(DATASETS)
    assert status["mnist"][0] == "missing" and status["handwriting"] == ["in", "part"]
    assert status["fashion-mnist"][0] == "here"
    command = (
        f"fashion-mnist-full: apt install dataset-fashion-mnist && gendiff data import fashion-mnist --root {tmp_path}"
    )
    assert command in lines
    assert not any(line.startswith("fashion-mnist: ") for line in lines)


def test_list_as_json(tmp_path, capsys):
    assert main(["data", "list", "--json", "--root", str(tmp_path)]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert list(cards) == list(DATASETS)
    wanted = {"status", "about", "source", "licence", "size", "splits", "preprocessing", "ships", "needs", "get"}
    assert all(set(card) == wanted | {"name"} for card in cards.values())
    assert cards["fashion-mnist"]["licence"] == "MIT, Zalando SE" and cards["emoji"]["status"] == "missing"
    assert str(tmp_path) in cards["emoji"]["get"]


def test_one_card(tmp_path, capsys):
    assert main(["data", "list", "cifar10", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["status:", "missing"] for line in lines)
    assert main(["data", "list", "cifar10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "cifar10"
    assert main(["data", "list", "cifar"]) == 2
    assert "no data set 'cifar'; known: pendulum" in capsys.readouterr().err


def test_list_needs_no_torch():
    code = (
        "import sys; from gendiff.cli import main; sys.exit(main(['data', 'list', '--json']) or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).returncode == 0


def test_import_fashion_mnist(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nothing")
    assert main(["data", "import", "fashion-mnist", "--root", str(tmp_path)]) == 2
    assert "install the Debian package dataset-fashion-mnist" in capsys.readouterr().err
    (tmp_path / "given").mkdir()
    assert main(["data", "import", "fashion-mnist", str(tmp_path / "given"), "--root", str(tmp_path)]) == 2
    assert "no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in" in capsys.readouterr().err
    for name in fashion_mnist.SHA256:
        (tmp_path / "given" / name).write_bytes(b"other")
    assert main(["data", "import", "fashion-mnist", str(tmp_path / "given"), "--root", str(tmp_path)]) == 2
    assert "train-images-idx3-ubyte in" in (error := capsys.readouterr().err) and "is not the original" in error
    monkeypatch.setattr(fashion_mnist, "import_release", lambda source, raw, *_: raw / str(source))
    assert main(["data", "import", "fashion-mnist", "given", "--root", "somewhere"]) == 0
    assert capsys.readouterr().out.strip() == "somewhere/FashionMNIST/raw/given"


def test_import_emoji(tmp_path, capsys):
    font, table = tmp_path / "NotoColorEmoji.ttf", tmp_path / "emoji-test.txt"
    arguments = ["data", "import", "emoji", str(font), "--table", str(table), "--root", str(tmp_path)]
    assert main(arguments) == 2
    assert "install the Debian package fonts-noto-color-emoji" in capsys.readouterr().err
    if not DEBIAN_FONT.is_file():
        pytest.skip("fonts-noto-color-emoji is not installed")
    font.symlink_to(DEBIAN_FONT)
    assert main(arguments) == 2
    assert "install the Debian package unicode-data" in capsys.readouterr().err
    table.write_text("# group: Food\n# subgroup: fruit\n1F34E ; fully-qualified # \U0001f34e E0.6 red apple\n", "utf-8")
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "emoji")
    assert np.load(tmp_path / "emoji" / "64.npz")["images"].shape == (1, 64, 64, 3)
