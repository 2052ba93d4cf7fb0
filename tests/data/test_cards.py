from __future__ import annotations

from pathlib import Path

import pytest

from gendiff.data import DATASETS, load_dataset
from gendiff.data.cards import CARDS, page
from gendiff.data.data_card import DataCard
from gendiff.errors import InvalidInputError

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_every_data_set_has_a_card_in_the_same_order():
    assert list(CARDS) == list(DATASETS)
    for card in CARDS.values():
        for field in ("about", "source", "licence", "size", "splits", "preprocessing"):
            text = getattr(card, field)
            assert text and not text.endswith(".") and "\n" not in text and "|" not in text
        assert card.ships or card.needs
        assert card.get or not card.needs


def test_the_page_is_written_from_the_cards():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m gendiff.data.cards docs/data.md`"


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if not card.ships])
def test_what_a_card_calls_missing_cannot_be_loaded(name, tmp_path):
    assert CARDS[name].status(tmp_path) == "missing"
    with pytest.raises(FileNotFoundError):
        load_dataset(name, "test", root=tmp_path)


@pytest.mark.parametrize("name", ["fashion-mnist", "moving-digits", "moving-clothes"])
def test_what_a_card_says_ships_is_there(name, tmp_path):
    assert CARDS[name].status(tmp_path) == "here"
    card = CARDS[name]
    for split in ("train", "test"):
        assert f"{split} {len(load_dataset(name, split)):,}" in card.splits


def test_status_and_command(tmp_path):
    card = DataCard("about", "source", "licence", "size", "splits", "as is", needs=("a/b", "c"), get="get {root}/c")
    assert card.status(tmp_path) == "missing"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.gz").touch()
    assert card.status(tmp_path) == "missing"
    (tmp_path / "c").touch()
    assert card.status(tmp_path) == "here"
    assert card.command("here") == "get here/c"
    assert CARDS["handwriting"].status(tmp_path) == "in part"


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(InvalidInputError, match=r"unknown dataset 'fashion-mnst'; .*Did you mean 'fashion-mnist'"):
        load_dataset("fashion-mnst")
