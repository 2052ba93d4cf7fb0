"""Code use and reconstruction by stage: the numbers are right, and a codebook that died is named."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_stages import TOKENIZER, Bars, whole_batch

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.training import tokenizer_health
from gendiff.training.codebook import start_codebook
from gendiff.training.image_data import fair_sample
from gendiff.training.tokenizer_health import measure_stages, report_stages


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    model = FrequencyVQModel(16, 1, **TOKENIZER).eval()
    start_codebook(model, whole_batch()["image"], torch.Generator().manual_seed(0))
    return model


def test_use_and_psnr_are_those_of_all_images_however_many_are_decoded_at_once(vqvae, monkeypatch):
    images = whole_batch()["image"]
    tokens = vqvae.encode(images).tokens
    monkeypatch.setattr(tokenizer_health, "PIXELS_AT_ONCE", 16 * 16 * 7)
    stages = measure_stages(vqvae, Bars())
    for k, stage in enumerate(stages):
        error = (vqvae.decode(tokens[: k + 1]) - images).square().mean(dim=(1, 2, 3)) / 4
        assert stage.psnr == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
        assert stage.codes == tokens[k].unique().numel()
        assert stage.possible == 32 and stage.side == k + 1
    assert [stage.possible for stage in measure_stages(vqvae, Bars(), count=2)] == [2, 8, 18, 32]


def test_a_live_codebook_passes_and_a_dead_one_is_named(vqvae, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer_health, "ENOUGH", 0.2)
    with caplog.at_level(logging.WARNING):
        assert "failed" not in report_stages(vqvae, Bars())
    assert not caplog.records
    vqvae.quantizer.codebook.weight.data[3:] = 1e3
    with caplog.at_level(logging.WARNING):
        card = report_stages(vqvae, Bars())
    used = [stage.codes for stage in measure_stages(vqvae, Bars())]
    assert f"**Health check failed:** stage 2 uses {used[2]} of 32 codes; stage 3 uses {used[3]} of 32" in card
    assert "stage 0 uses" not in card and "stage 1 uses" not in card
    assert "stage 2 uses" in caplog.records[0].getMessage() and "revive_steps" in caplog.records[0].getMessage()


def test_a_fair_sample_of_sorted_data_has_more_than_the_first_class():
    def data(labels):
        return type("Data", (SimpleNamespace,), {"__len__": lambda self: len(labels)})(
            labels=torch.tensor(labels), classes=("a", "b")
        )

    assert list(fair_sample(data([0, 1] * 5), 4)) == [0, 1, 2, 3]
    assert list(fair_sample(data([0] * 5 + [1] * 5), 4)) == [0, 2, 4, 6]
    assert list(fair_sample(data([0] * 3), 4)) == [0, 1, 2]
    assert list(fair_sample([None] * 9, 2)) == [0, 4]
