"""A codebook starts where the data are, dead codes move there, live ones stay, and all processes agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_stages import TOKENIZER, whole_batch
from torch import Tensor

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.nn.residual_quantizer import QuantizedStages, ResidualQuantizer
from gendiff.training import codebook
from gendiff.training.codebook import REVIVE_EVERY, USE_DECAY, start_codebook, tend_codebook

HERE = Path(__file__).parent


def tiny_model() -> FrequencyVQModel:
    torch.manual_seed(0)
    return FrequencyVQModel(16, 1, **TOKENIZER)


def codes_used(model: FrequencyVQModel, images: Tensor) -> int:
    return int(torch.cat(model.encode(images).tokens, dim=1).unique().numel())


def test_the_start_puts_every_code_to_use():
    model, images = tiny_model(), whole_batch()["image"]
    torch.nn.init.uniform_(model.quantizer.codebook.weight, -1 / 32, 1 / 32)
    assert codes_used(model, images) < 28, "or this test would say nothing"
    start_codebook(model, images, torch.Generator().manual_seed(0))
    assert codes_used(model, images) == 32


def test_the_start_follows_from_the_generator_and_not_from_how_many_images_are_encoded_at_once(monkeypatch):
    images, weights = whole_batch()["image"], []
    for at_once in (2**19, 2**19, 700):
        monkeypatch.setattr(codebook, "PIXELS_AT_ONCE", at_once)
        model = tiny_model()
        start_codebook(model, images, torch.Generator().manual_seed(0))
        weights.append(model.quantizer.codebook.weight)
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2], atol=1e-4, rtol=0)
    start_codebook(model, images, torch.Generator().manual_seed(1))
    assert not torch.allclose(weights[0], model.quantizer.codebook.weight, atol=1e-2)


def test_with_fewer_rows_than_codes_the_start_is_still_finite():
    torch.manual_seed(0)
    model = FrequencyVQModel(16, 1, **{**TOKENIZER, "codebook_size": 512})
    start_codebook(model, whole_batch()["image"][:2], torch.Generator().manual_seed(0))
    assert torch.isfinite(model.quantizer.codebook.weight).all()


def quantizer_and_step() -> tuple[ResidualQuantizer, QuantizedStages]:
    """Of 8 codes a step uses 0 to 4; the grids hold numbers from 100 on, so that a moved code is known."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer((1, 2), 3, 8, (0, 0))
    tokens = [torch.tensor([[0], [0]]), torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]])]
    grids = [100 + torch.rand(2, 3, side, side) for side in (1, 2)]
    return quantizer, QuantizedStages(tokens, [], grids)


def test_only_dead_codes_move_and_only_every_so_often_and_not_after_the_last_time():
    quantizer, step = quantizer_and_step()
    weight, generator = quantizer.codebook.weight, torch.Generator().manual_seed(0)
    before = weight.detach().clone()
    for _ in range(REVIVE_EVERY - 1):
        tend_codebook(quantizer, step, generator, revive_steps=REVIVE_EVERY)
    assert torch.equal(weight, before)
    tend_codebook(quantizer, step, generator, revive_steps=REVIVE_EVERY)
    assert torch.equal(weight[:5], before[:5])
    assert (weight[5:] >= 100).all(), "moved onto rows of the step"
    rows = torch.cat([grid.movedim(1, -1).flatten(0, -2) for grid in step.grids])
    assert all((row == rows).all(dim=1).any() for row in weight[5:].detach())
    assert (quantizer.code_use[5:] > 0).all(), "a moved code has time to be used"

    quantizer.code_use[5:] = 0
    moved = weight.detach().clone()
    for _ in range(2 * REVIVE_EVERY):
        tend_codebook(quantizer, step, generator, revive_steps=REVIVE_EVERY)
    assert torch.equal(weight, moved)


def test_a_frozen_codebook_stays():
    quantizer, step = quantizer_and_step()
    before = quantizer.codebook.weight.detach().clone()
    quantizer.requires_grad_(False)
    for _ in range(REVIVE_EVERY):
        tend_codebook(quantizer, step, torch.Generator(), revive_steps=REVIVE_EVERY)
    assert torch.equal(quantizer.codebook.weight, before) and int(quantizer.updates) == REVIVE_EVERY


def test_use_is_a_moving_mean_of_counts():
    quantizer, step = quantizer_and_step()
    for _ in range(3):
        tend_codebook(quantizer, step, torch.Generator(), revive_steps=0)
    counts = torch.tensor([3.0, 2, 2, 2, 1, 0, 0, 0])
    torch.testing.assert_close(quantizer.code_use, counts * (1 - USE_DECAY**3))
    assert int(quantizer.updates) == 3


TWO_PROCESSES = """
import os, sys
import torch
from torch import distributed
import test_codebook
from tiny_stages import Bars, tokenizer_recipe
from gendiff.training import codebook, trainer

def tend(rank, folder):
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    quantizer, step = test_codebook.quantizer_and_step()
    if rank:  # other codes, other rows
        step = test_codebook.QuantizedStages([codes + 1 for codes in step.tokens], [], [g + 100 for g in step.grids])
    codebook.REVIVE_EVERY = 2
    for _ in range(2):
        codebook.tend_codebook(quantizer, step, torch.Generator().manual_seed(rank), revive_steps=2)
    distributed.destroy_process_group()
    return quantizer.state_dict()

children = []
for rank in range(2):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        torch.save(tend(rank, sys.argv[1]), f"{sys.argv[1]}/tended-{rank}.pt")
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        made = trainer.train(tokenizer_recipe(steps=6), f"{sys.argv[1]}/run", dataset=Bars())
        torch.save(made.model.state_dict(), f"{sys.argv[1]}/trained-{rank}.pt")
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(
        (sys.executable, str(folder / "script.py"), str(folder)),
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return folder


def both(folder: Path, name: str) -> list[dict[str, Tensor]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def test_processes_count_together_and_move_the_same_codes_to_the_same_rows(two_processes):
    first, second = both(two_processes, "tended")
    assert all(torch.equal(first[name], second[name]) for name in first)
    # One process used codes 0 to 4, the other 1 to 5; the rows are those of the first, from 100 to 101.
    weight, use = first["codebook.weight"], first["code_use"]
    assert (weight[:6].abs() < 50).all() and ((weight[6:] >= 100) & (weight[6:] < 101)).all()
    counts = torch.tensor([3.0, 5, 4, 4, 3, 1])
    torch.testing.assert_close(use[:6], counts * (1 - USE_DECAY**2))


def test_a_tokenizer_trained_in_two_processes_is_one(two_processes):
    first, second = both(two_processes, "trained")
    assert int(first["quantizer.updates"]) == 7, "one call tries the objective before training"
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = FrequencyVQModel.from_pretrained(two_processes / "run" / "final").state_dict()
    assert all(torch.equal(first[name], saved[name]) for name in first)
