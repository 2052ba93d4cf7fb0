"""Clock, calibration, operations and memory: against what is known without measuring."""

from __future__ import annotations

import importlib
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.pipelines.stats import Meter


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self, share=1.0):
        self.now, self.share = 0.0, share

    def run(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.now * self.share


@pytest.fixture
def clock(bench, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench("timing"), "time", clock)
    return clock


def test_a_pipeline_that_sleeps_takes_as_long_as_it_sleeps(bench):
    case = bench("harness").measure(partial(time.sleep, 0.05), batch=4, warmup=1, nfe=5, budget_s=5)
    assert case["p50"] == pytest.approx(0.05, rel=0.2)
    assert case["images_per_s"] == pytest.approx(4 / case["p50"]) and case["s_per_image"] == case["p50"] / 4
    assert case["ms_per_nfe"] == pytest.approx(1000 * case["p50"] / 5)
    assert case["min"] <= case["ci95"][0] <= case["p50"] <= case["ci95"][1] and case["p50"] <= case["p90"]
    # It slept through its promised CPU time.
    assert case["cpu_share"] < 0.1 and case["noisy"]
    assert case["flops_per_sample"] is None and case["output_sha256"] is None
    bench("result_schema").check_case({**case, "id": "sleep", "pipeline": "sleep"})


def test_it_repeats_until_the_median_is_known(bench, clock):
    time_runs = bench("timing").time_runs
    timing = time_runs(partial(clock.run, 2.0), budget_s=1000)
    assert timing.timings_s == [2.0] * 10 and timing.warmup_s == [2.0] * 3 and timing.precise and not timing.noisy
    # Seconds that differ by half need far more than ten runs for 3 %.
    draws = iter(np.random.default_rng(0).uniform(1, 2, 2000))
    timing = time_runs(lambda: clock.run(next(draws)), budget_s=1e9)
    assert timing.precise and len(timing.timings_s) > 100
    assert bench("timing").half_width(timing.timings_s) < 0.03 < bench("timing").half_width(timing.timings_s[:10])


def test_the_budget_ends_it(bench, clock):
    timing = bench("timing").time_runs(partial(clock.run, 2.0), budget_s=5)
    assert timing.timings_s == [2.0] * 3 and not timing.precise
    timing = bench("timing").time_runs(partial(clock.run, 2.0), budget_s=0.1)
    assert timing.timings_s == [2.0] and bench("timing").summary(timing.timings_s)["ci95"] is None


def test_what_comes_before_a_run_is_not_timed(bench, clock):
    timing = bench("timing").time_runs(partial(clock.run, 1.0), before=partial(clock.run, 100.0), budget_s=50)
    assert timing.timings_s == [1.0] * 10


@pytest.mark.parametrize(("share", "noisy"), [(0.86, False), (0.84, True)])
def test_a_process_that_did_not_get_its_cores_is_noisy(bench, clock, share, noisy):
    clock.share = share * torch.get_num_threads()
    timing = bench("timing").time_runs(partial(clock.run, 1.0))
    assert timing.cpu_share == pytest.approx(share) and timing.noisy is noisy


def test_the_interval_covers_the_true_median_as_often_as_it_says(bench):
    bootstrap_ci = bench("timing").bootstrap_ci
    rng = np.random.default_rng(0)
    draws = np.exp(rng.normal(size=(150, 40)))  # skewed as run times are; median 1
    covered = [low <= 1 <= high for low, high in map(bootstrap_ci, draws)]
    assert 0.90 < np.mean(covered) < 0.99
    assert bootstrap_ci(draws[0]) == bootstrap_ci(draws[0])
    assert bootstrap_ci([3.0] * 5) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"min_repeats": 0}, "min_repeats must be a whole number of at least 1, got 0"),
        ({"budget_s": 0}, "budget_s must be above 0, got 0"),
        ({"max_repeats": 5}, "max_repeats must be at least min_repeats = 10, got 5"),
    ],
)
def test_bad_settings_are_named_before_any_run(bench, change, message):
    with pytest.raises(InvalidInputError, match=message):
        bench("timing").time_runs(pytest.fail, **change)


def test_products_and_convolutions_have_their_closed_forms(bench):
    flops = bench("flops")
    a, b, v = torch.randn(7, 5), torch.randn(5, 3), torch.randn(5)
    assert flops.count_flops(lambda: a @ b) == flops.matmul_flops(7, 5, 3) == 210
    assert flops.count_flops(lambda: a @ v) == flops.matmul_flops(7, 5, 1)
    assert flops.count_flops(lambda: torch.addmv(torch.zeros(7), a, v)) == flops.matmul_flops(7, 5, 1)
    assert flops.count_flops(lambda: v @ v) == flops.matmul_flops(1, 5, 1)
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 9, 11)
    size = conv(x).shape[2:]
    with torch.inference_mode():
        assert flops.count_flops(lambda: conv(x)) == flops.conv_flops(2, 4, 6, (3, 5), size, groups=2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_counted_on_a_cpu(bench, causal):
    flops = bench("flops")
    query, key, value = (torch.randn(2, 3, length, 8) for length in (5, 7, 7))
    count = flops.count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal))
    assert count == flops.attention_flops(2, 3, 5, 7, 8)


def test_the_fast_path_of_attention_is_counted_and_comes_back(bench):
    flops = bench("flops")
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(3, 5, 16)
    projections = flops.matmul_flops(15, 16, 48) + flops.matmul_flops(15, 16, 16) + 2 * flops.matmul_flops(15, 16, 32)
    with torch.inference_mode():
        assert flops.count_flops(lambda: layer(x)) == projections + flops.attention_flops(3, 2, 5, 5, 8)
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        flops.count_flops(lambda: 1 / 0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_fourier_transforms_are_counted_by_hand(bench):
    count, fft_flops = bench("flops").count_flops, bench("flops").fft_flops
    real, pair = torch.randn(3, 8, 16), torch.randn(3, 8, 16, dtype=torch.complex64)
    assert count(lambda: torch.fft.fft(pair)) == fft_flops([16], 24) == 24 * 5 * 16 * 4
    assert count(lambda: torch.fft.ifft2(pair)) == fft_flops([8, 16], 3) == 3 * 5 * 128 * 7
    assert count(lambda: torch.fft.rfft(real)) == fft_flops([16], 24, real=True) == 24 * 5 * 16 * 4 // 2
    assert count(lambda: torch.fft.irfft(torch.fft.rfft(real), 16)) == 2 * fft_flops([16], 24, real=True)


def test_a_decoder_step_is_the_sum_of_its_parts(bench):
    """One new row against 9 cached ones: projections, attention, output, two layers of an MLP."""
    flops, dim, heads, past, hidden = bench("flops"), 16, 2, 9, 64
    qkv, out, up, down = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    x, cache = torch.randn(1, 1, dim), torch.randn(2, 1, heads, past, dim // heads)

    def step():
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, -1))
        keys, values = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        seen = nn.functional.scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)
        return down(nn.functional.gelu(up(out(seen))))

    parts = [(dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim)]
    expected = sum(flops.matmul_flops(1, *sizes) for sizes in parts)
    with torch.no_grad():
        assert flops.count_flops(step) == expected + flops.attention_flops(1, heads, 1, past + 1, dim // heads)


def test_a_pipeline_that_counts_for_itself_is_counted_in_full(bench):
    meter, layer = Meter(), nn.Linear(8, 16)
    count = bench("flops").count_flops(lambda: [meter(layer, torch.randn(4, 8)) for _ in range(3)])
    assert count == meter.flops == 3 * bench("flops").matmul_flops(4, 8, 16)


def test_figures_follow_from_operations_and_calibration(bench, clock):
    layer, x = nn.Linear(100, 50, bias=False), torch.ones(4, 100)

    def run():
        clock.run(0.5)
        return layer(x)

    rates = {"gemm_fp32_gflops": 1e-3, "copy_gbs": 1.0}
    case = bench("harness").measure(run, batch=4, calibration=rates, nfe=1)
    assert case["flops_per_sample"] == 2 * 100 * 50
    assert case["achieved_gflops"] == pytest.approx(4 * 10_000 / 0.5 / 1e9)
    assert case["utilisation"] == pytest.approx(case["achieved_gflops"] / 1e-3)
    assert bench("harness").measure(run, calibration=rates, dtype="bfloat16", nfe=1)["utilisation"] is None


def test_time_in_the_network_is_calls_times_median(bench):
    harness, network, waits = bench("harness"), nn.Identity(), iter([0.05, 0.01, 0.01])
    network.forward = lambda x: time.sleep(next(waits))
    times = harness.network_times(lambda: [network(0) for _ in range(3)], network)
    assert len(times) == 3 and times[0] > 0.04
    assert harness.network_seconds(times) == pytest.approx(3 * sorted(times)[1])
    assert harness.network_seconds([]) is None
    assert not network._forward_pre_hooks and not network._forward_hooks


def test_the_machine_is_calibrated(bench):
    calibration = bench("calibration")
    rates = calibration.calibrate(seconds=0.01, dtype="bfloat16")
    assert set(rates) == {"gemm_fp32_gflops", "copy_gbs", "gemm_bfloat16_gflops"} and min(rates.values()) > 0
    assert calibration.gemm_rate(rates, "bfloat16") == rates["gemm_bfloat16_gflops"]
    assert calibration.gemm_rate(rates, "float16") is None


def test_auto_is_the_fastest_type_that_is_not_emulated(bench, monkeypatch):
    calibration = bench("calibration")
    monkeypatch.setattr(calibration, "cpu_flags", lambda: frozenset({"avx2"}))
    assert calibration.resolve_dtype("auto", "cpu") == "float32"
    with pytest.warns(MetricWarning, match="no bfloat16 products"):
        assert calibration.resolve_dtype("bfloat16", "cpu") == "bfloat16"
    monkeypatch.setattr(calibration, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert calibration.resolve_dtype("auto", "cpu") == calibration.resolve_dtype("bfloat16", "cpu") == "bfloat16"
    with pytest.raises(InvalidInputError, match="dtype must be one of auto, float32"):
        calibration.resolve_dtype("int8", "cpu")


def test_pairs_run_a_b_b_a_on_equal_work(bench, clock):
    order = []

    def way(name, seconds):
        def run():
            order.append(name)
            clock.run(seconds)
            return torch.zeros(2)

        return run

    pair = bench("paired").compare_runs(way("a", 1.0), way("b", 2.0), tolerance=0, warmup=2)
    assert order[:4] == ["a", "b", "a", "b"] and order[4:12] == list("abbaabba")
    assert pair.ratio_p50 == 0.5 and pair.ratio_ci95 == (0.5, 0.5) and pair.max_abs_diff == 0
    assert len(pair.ours.timings_s) == len(pair.peer.timings_s) == 10 and pair.extra_s == [-1.0] * 10


def test_pairs_with_different_results_are_refused(bench, clock):
    paired = bench("paired")
    with pytest.raises(InvalidInputError, match=r"outputs differ by 0\.5, allowed is 0\.1"):
        paired.compare_runs(lambda: torch.zeros(2), lambda: torch.full((2,), 0.5), tolerance=0.1)
    with pytest.raises(InvalidInputError, match="outputs differ by nan"):
        paired.compare_runs(lambda: torch.zeros(1), lambda: torch.tensor([float("nan")]), tolerance=0.1)
    with pytest.raises(InvalidInputError, match="one shape"):
        paired.compare_runs(lambda: torch.zeros(2), lambda: torch.zeros(1), tolerance=0.1)


def test_an_interval_that_holds_1_is_no_difference(bench):
    verdict = bench("paired").verdict
    assert verdict(0.9, (0.8, 1.01)) == verdict(1.0, (1.0, 1.0)) == "no difference"
    assert verdict(0.9, (0.8, 0.95)) == "0.900 [0.800, 0.950]"


WORK = """
def allocate(mebibytes):
    return lambda: bytearray(b"x" * (mebibytes << 20))

def fail():
    raise ValueError("no such model")
"""


def test_memory_is_how_far_a_fresh_process_grows(bench, monkeypatch, tmp_path):
    (tmp_path / "work_of_a_process.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    memory, work = bench("memory"), importlib.import_module("work_of_a_process")
    found = memory.rss_growth(partial(work.allocate, 64))
    # The bytes and, for a moment, the copy that they are made from.
    assert 64 <= found["peak_mem_bytes"] / 2**20 < 64 * 2 + 16 and found["mem_kind"] == "rss_growth"
    with pytest.raises(RuntimeError, match="failed: ValueError: no such model"):
        memory.rss_growth(work.fail)
    del sys.modules["work_of_a_process"]


def test_images_of_any_kind_have_a_hash(bench):
    harness = bench("harness")
    images = torch.rand(2, 1, 4, 4)
    as_array = images.permute(0, 2, 3, 1).numpy()
    assert torch.equal(harness.as_tensor(as_array), images)
    assert harness.output_sha256(images) == harness.output_sha256((as_array,)) != harness.output_sha256(images + 1)
    assert harness.output_sha256(images) != harness.output_sha256(images.reshape(2, 1, 2, 8))
    assert harness.output_sha256("words") is None
