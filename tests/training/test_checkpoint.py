from __future__ import annotations

import pytest
import torch

from gendiff.files import remove_leftovers, written_whole
from gendiff.training import checkpoint
from gendiff.training.checkpoint import (
    newest_checkpoint,
    read_facts,
    read_state,
    save_checkpoint,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_state_and_facts_come_back(tmp_path):
    state = {"weights": {"a": torch.randn(3, 2)}, "step": 4, "values": [None, 0.5, "x"]}
    path = save_checkpoint(tmp_path, 4, state, {"seconds": 1.5}, keep=2)
    read = read_state(path)
    assert torch.equal(read["weights"]["a"], state["weights"]["a"])
    assert read["step"] == 4 and read["values"] == [None, 0.5, "x"]
    assert read_facts(path) == {"step": 4, "seconds": 1.5}


def test_the_newest_are_kept(tmp_path):
    for step in (1, 20, 3, 100):
        save_checkpoint(tmp_path, step, {}, {}, keep=2)
    assert names(tmp_path) == ["step-00000020", "step-00000100"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000100"


def test_no_folder_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_step_can_be_saved_again(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": 1}, {}, keep=1)
    path = save_checkpoint(tmp_path, 1, {"x": 2}, {}, keep=1)
    assert read_state(path) == {"x": 2}
    assert names(tmp_path) == ["step-00000001"]


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, 1, {"x": 1}, {}, keep=3)

    def full_disk(state, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, step, {"x": 2}, {}, keep=3)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000001"]
    assert read_state(path) == {"x": 1}


def test_leftovers_of_a_killed_write_are_no_checkpoint_and_are_removed(tmp_path):
    save_checkpoint(tmp_path, 1, {}, {}, keep=1)
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "step-00000002") as partial:
        (partial / "state.pt").write_bytes(b"half")
        partial.rename(tmp_path / ".partial-killed")
        raise KeyboardInterrupt
    (tmp_path / ".partial-log.jsonl").write_text("half")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


class Dangerous:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    path = save_checkpoint(tmp_path, 1, {"x": Dangerous()}, {}, keep=1)
    with pytest.raises(ValueError, match=r"state\.pt cannot be loaded"):
        read_state(path)
    assert "code ran" not in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.zeros(10)}, {}, keep=1)
    (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-00000001.state\.pt cannot be loaded"):
        read_state(path)
