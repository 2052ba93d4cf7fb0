from __future__ import annotations

import gzip

import numpy as np
import pytest
from PIL import Image

from gendiff.data import load_dataset
from gendiff.data.arrays import load_arrays, save_arrays
from gendiff.data.emoji import import_emoji, is_test
from gendiff.data.emoji_render import DEBIAN_FONT, on_white, open_font
from gendiff.data.emoji_table import read_table, without_modifiers
from gendiff.errors import InvalidInputError

needs_font = pytest.mark.skipif(not DEBIAN_FONT.is_file(), reason="fonts-noto-color-emoji is not installed")

TABLE = """# emoji-test.txt
# Format: code points; status # emoji name

# group: Smileys & Emotion

# subgroup: face-smiling
1F600                              ; fully-qualified     # \U0001f600 E1.0 grinning face
1F603                              ; fully-qualified     # \U0001f603 E0.6 grinning face with big eyes
263A FE0F                          ; fully-qualified     # \u263a\ufe0f E0.6 smiling face
263A                               ; unqualified         # \u263a E0.6 smiling face

# group: People & Body

# subgroup: hand-fingers-open
1F44B                              ; fully-qualified     # \U0001f44b E0.6 waving hand
1F44B 1F3FB                        ; fully-qualified     # \U0001f44b\U0001f3fb E1.0 waving hand: light skin tone
1F44B 1F3FF                        ; fully-qualified     # \U0001f44b\U0001f3ff E1.0 waving hand: dark skin tone

# group: Component

# subgroup: skin-tone
1F3FB                              ; component           # \U0001f3fb E1.0 light skin tone

# group: Flags

# subgroup: country-flag
1F1EA 1F1F8                        ; fully-qualified     # \U0001f1ea\U0001f1f8 E0.6 flag: Spain
1F1EA 1F1E6                        ; fully-qualified     # \U0001f1ea\U0001f1e6 E2.0 flag: Ceuta & Melilla
1F1E6 1F1FF 1F600                  ; fully-qualified     # \U0001f1e6\U0001f1ff\U0001f600 E99 two glyphs
0378                               ; fully-qualified     # \u0378 E99 no glyph at all
#EOF
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "emoji-test.txt"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_the_table(table, tmp_path):
    found = read_table(table)
    assert len(found) == 11 and "smiling face" in [emoji.name for emoji in found]
    assert found[2] == ("\u263a\ufe0f", "smiling face", "Smileys & Emotion", "face-smiling")
    assert found[5].name == "waving hand: dark skin tone" and found[5].group == "People & Body"
    assert found[6] == ("\U0001f3fb", "light skin tone", "Component", "skin-tone")
    zipped = tmp_path / "emoji-test.txt.gz"
    zipped.write_bytes(gzip.compress(table.read_bytes()))
    assert read_table(zipped) == found


def test_tables_that_are_none(table, tmp_path):
    with pytest.raises(FileNotFoundError, match="install the Debian package unicode-data"):
        read_table(tmp_path / "nothing.txt")
    for text, message in [
        (TABLE + "1F600 ; what\n", r"line 32 is '1F600 ; what'"),
        (TABLE.replace("# group: Smileys & Emotion", ""), "line 7 is"),
        ("# nothing\n", "lists no emoji"),
    ]:
        table.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidInputError, match=rf"emoji-test\.txt is not an emoji-test\.txt: .*{message}"):
            read_table(table)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        read_table(table)


def test_skin_tones_stay_on_one_side_of_the_split():
    assert without_modifiers("\U0001f44b\U0001f3fb") == without_modifiers("\U0001f44b") == "\U0001f44b"
    assert without_modifiers("\U0001f3fb") == "\U0001f3fb"
    sequences = [chr(code) for code in range(0x1F300, 0x1F5FF) if not 0x1F3FB <= code <= 0x1F3FF]
    assert all(is_test(sequence) == is_test(sequence + "\U0001f3fd") for sequence in sequences)
    assert 0.07 < np.mean([is_test(sequence) for sequence in sequences]) < 0.13
    assert [is_test(sequence) for sequence in "\U0001f600\U0001f603\U0001f44b"] == [False, True, False]


def test_a_glyph_in_the_middle_of_white():
    glyph = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    glyph.paste((0, 0, 255, 255), (34, 0, 102, 128))
    drawn = on_white(glyph, 34)
    assert drawn.shape == (34, 34, 3) and drawn[[0, -1]].min() > 200  # the filter rings a little
    assert (drawn[:, :5] == 255).all() and (drawn[:, -5:] == 255).all()
    assert (drawn[4:30, 12:22] == (0, 0, 255)).all()
    np.testing.assert_array_equal(drawn, drawn[::-1, ::-1])


@needs_font
def test_import_renders_each_picture_once(table, tmp_path):
    assert import_emoji(root=tmp_path, table=table) == tmp_path / "emoji"
    assert sorted(path.name for path in (tmp_path / "emoji").iterdir()) == ["32.npz", "64.npz"]
    for size in (32, 64):
        train, test = (load_dataset("emoji", split, root=tmp_path, size=size) for split in ("train", "test"))
        names = {*train.names, *test.names}
        # Ceuta & Melilla flies the flag of Spain.
        assert names == {emoji.name for emoji in read_table(table)} - {
            "flag: Ceuta & Melilla",
            "two glyphs",
            "no glyph at all",
        }
        assert len(train) + len(test) == len(names) == 8
        assert train.provenance["listed"] == 11 and train.provenance["without_glyph"] == 2
        assert train.provenance["distinct"] == 8 and len(train.provenance["font_sha256"]) == 64
        for data in (train, test):
            assert data.images.shape[1:] == (3, size, size)
            assert data.classes == ("Smileys & Emotion", "People & Body", "Component", "Flags")
            assert (data.images[:, :, 0, 0] == 255).all() and len(data.images.unique(dim=0)) == len(data)
            for row, sequence in enumerate(data.sequences):
                assert is_test(sequence) == (data is test)
                group = "Flags" if "flag" in data.names[row] else data.classes[data[row]["label"]]
                assert data.classes[data.labels[row]] == group
        both = {name: data.images[row] for data in (train, test) for row, name in enumerate(data.names)}
        red, green, blue = both["grinning face"][:, size // 4, size // 2].tolist()
        assert red > 200 and green > 150 and blue < 120
        light, dark = (both[f"waving hand: {tone} skin tone"].float().mean() for tone in ("light", "dark"))
        assert light > dark + 10


@needs_font
def test_a_folder_with_the_font_and_equal_files_twice(table, tmp_path):
    for root in ("a", "b"):
        import_emoji(DEBIAN_FONT.parent, tmp_path / root, table)
    for name in ("32.npz", "64.npz"):
        assert (tmp_path / "a/emoji" / name).read_bytes() == (tmp_path / "b/emoji" / name).read_bytes()


def test_fonts_that_are_none(table, tmp_path):
    (tmp_path / "fonts").mkdir()
    for source in (tmp_path / "fonts", tmp_path / "missing.ttf"):
        with pytest.raises(FileNotFoundError, match="install the Debian package fonts-noto-color-emoji"):
            import_emoji(source, tmp_path / "root", table)
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(InvalidInputError, match=r"text\.ttf is not a font with colour bitmaps of size 109"):
        open_font(tmp_path / "text.ttf")
    assert not (tmp_path / "root").exists()


@pytest.fixture
def root(tmp_path):
    """A file as the importer writes it, with four flat pictures."""
    arrays = {
        "images": np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3),
        "names": np.array(["grinning face", "fox", "cat", "red apple"]),
        "sequences": np.array(["\U0001f600", "\U0001f98a", "\U0001f408", "\U0001f34e"]),
        "groups": np.array([0, 1, 1, 2]),
        "group_names": np.array(["faces", "animals", "food"]),
        "subgroups": np.array([0, 1, 1, 2]),
        "subgroup_names": np.array(["face", "mammal", "fruit"]),
        "test": np.array([False, True, False, False]),
        "provenance": np.array('{"distinct": 4}'),
    }
    save_arrays(tmp_path / "emoji" / "32.npz", arrays)
    return tmp_path


def test_items_and_names(root):
    data = load_dataset("emoji", root=root)
    assert data.names == ("grinning face", "cat", "red apple") and data.labels.tolist() == [0, 1, 2]
    assert data.images[:, 2, 5, 5].tolist() == [0, 2, 3] and data.provenance == {"distinct": 4}
    item = data[1]
    assert item["image"].shape == (3, 32, 32) and item["label"] == 1 and item["subgroup"] == 1
    assert load_dataset("emoji", "test", root=root).names == ("fox",)
    assert load_dataset("emoji", root=root, num_images=2).names == ("grinning face", "cat")


def test_bad_arguments(root, tmp_path):
    with pytest.raises(InvalidInputError, match="split must be one of train, test, got 'validation'"):
        load_dataset("emoji", "validation", root=root)
    with pytest.raises(InvalidInputError, match="size must be one of 32, 64, got 28"):
        load_dataset("emoji", root=root, size=28)
    with pytest.raises(InvalidInputError, match="num_images must be a whole number from 1 to 3, got 4"):
        load_dataset("emoji", root=root, num_images=4)
    with pytest.raises(FileNotFoundError, match=r"64\.npz does not exist\. .*fonts-noto-color-emoji"):
        load_dataset("emoji", root=root, size=64)
    path = root / "emoji" / "32.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidInputError, match=r"32\.npz is damaged"):
        load_dataset("emoji", root=root)
    with pytest.raises(InvalidInputError, match=r"32\.npz is damaged"):
        load_arrays(path)
