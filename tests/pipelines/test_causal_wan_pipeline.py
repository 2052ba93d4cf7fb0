"""A transformer of the Wan family in the causal video pipeline: its first chunk is whole, and its cache exact."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from gendiff.models.causal_wan import CausalWanTransformer3DModel
from gendiff.pipelines.causal_video import CausalVideoPipeline


@pytest.fixture
def wan_pipeline():
    torch.manual_seed(0)
    transformer = CausalWanTransformer3DModel(
        sample_size=(4, 8),
        in_channels=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=32,
        freq_dim=16,
        cross_attention_dim=6,
        chunk_size=3,
        context_frames=6,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipe = CausalVideoPipeline(transformer.double().eval(), FlowMatchEulerDiscreteScheduler(shift=5.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rollout(pipe, num_frames=11, **options):
    text = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return pipe(
        prompt_embeds=text,
        num_frames=num_frames,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
        **options,
    )


def test_all_chunks_are_whole_from_the_first_one_on(wan_pipeline):
    chunks = rollout(wan_pipeline).stats.plan["chunks"]
    assert [chunk["frames"] for chunk in chunks] == [3, 3, 3, 2]
    assert rollout(wan_pipeline, num_frames=2).frames.shape == (1, 2, 2, 4, 8)


def test_given_frames_must_be_whole_chunks(wan_pipeline):
    given = torch.randn(1, 4, 2, 4, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be a multiple of 3 in block_causal attention, such as 3 or 6, got 4"):
        rollout(wan_pipeline, latents=given)


@pytest.mark.parametrize("sinks", [0, 3])
def test_the_cached_video_is_that_of_the_whole_history(wan_pipeline, sinks):
    cached = rollout(wan_pipeline, sink_frames=sinks).frames
    anew = rollout(wan_pipeline, sink_frames=sinks, use_cache=False).frames
    # Steps of the flow-matching scheduler are in float32, the network in float64.
    torch.testing.assert_close(cached, anew, atol=1e-6, rtol=0)


def test_it_saves_and_loads(wan_pipeline, tmp_path):
    wan_pipeline.save_pretrained(tmp_path)
    loaded = CausalVideoPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(rollout(loaded).frames, rollout(wan_pipeline).frames, atol=1e-5, rtol=0)
