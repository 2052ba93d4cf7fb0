"""`LINAPipeline.from_pipe(pipe)`: called like the pipeline, intervenes where a prompt needs it, says what it did."""

from __future__ import annotations

import pytest
import tiny_diffusers as tiny
import torch

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.pipelines.factor_directions import FactorDirections
from gendiff.pipelines.lina_attach import attach
from gendiff.pipelines.lina_conditions import Conditions, prompt_conditions
from gendiff.pipelines.lina_steered import SteeredPipeline
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.prompt_embeds import PromptEmbeds
from gendiff.samplers.warps import WarpSpec

# diffusers' schedulers hand tensors to numpy in the way of its first version.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT, OTHER = "a red ball on a small mirror", "a blue ball on a small mirror"
ABSENT = f"{PROMPT}, without a reflection"


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


def small(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return {
        "num_inference_steps": 3,
        "height": 16,
        "width": 16,
        "output_type": "latent",
        "generator": generator,
        **options,
    }


def test_off_is_the_pipeline_itself(pipe):
    plain = pipe(PROMPT, **small()).images
    steered = SteeredPipeline(pipe)
    for word in (None, "off", Intervention()):
        with tiny.counted(pipe.unet) as count:
            out = steered(PROMPT, intervention=word, **small())
        assert torch.equal(out.images, plain)
        assert (count.calls, count.rows) == (3, 6)
        assert out.nfe == [6]
        assert out.interventions == [Intervention()]
    assert len(out.schedule[0]) == 3
    assert out.schedule[0] == sorted(out.schedule[0], reverse=True)
    assert [node.id for node in out.graphs[0].implied()]
    assert out.frames is None


def test_it_is_attach_with_the_prompt_that_the_graph_gives(pipe):
    steered, intervention = SteeredPipeline(pipe), Intervention(lam=2.0)
    assert steered.counterfactual(PROMPT) == ABSENT
    out = steered(PROMPT, intervention=intervention, **small())
    with attach(pipe, intervention, prompt_conditions(pipe, PROMPT, ABSENT)) as attached:
        expected = pipe(PROMPT, **small()).images
    assert torch.equal(out.images, expected)
    assert out.nfe == [attached.nfe]
    assert out.interventions == [intervention]
    named = steered(PROMPT, intervention=intervention, counterfactual_prompt=OTHER, **small())
    assert not torch.equal(named.images, expected)


def test_every_prompt_has_its_own_intervention_and_images(pipe):
    steered, chosen = SteeredPipeline(pipe), [Intervention(lam=2.0), Intervention()]
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    together = steered([PROMPT, OTHER], intervention=chosen, **small(generator=generators, num_images_per_prompt=2))
    assert together.images.shape[0] == 4
    assert together.nfe[0] > together.nfe[1] == 6
    for i, prompt in enumerate((PROMPT, OTHER)):
        own = [torch.Generator().manual_seed(2 * i + k) for k in range(2)]
        alone = steered(prompt, intervention=chosen[i], **small(generator=own, num_images_per_prompt=2))
        assert torch.equal(together.images[2 * i : 2 * i + 2], alone.images)
    pictures = steered([PROMPT, OTHER], intervention="off", **small(output_type="pil"))
    assert [picture.size for picture in pictures.images] == [(16, 16)] * 2


@pytest.mark.parametrize("opens", [False, True])
def test_the_predictor_chooses(pipe, opens):
    box = ActionBox(lam_max=4.0)
    predictor = LINAPredictor(tiny.WIDTH, box.to_dict()).eval()
    if opens:
        with torch.no_grad():
            predictor.out.bias[box.names.index("lam")] = 0.5
            predictor.out.bias[-1] = 3.0
    out = SteeredPipeline(pipe, predictor)(PROMPT, **small())
    said = out.interventions[0]
    assert said.is_identity is not opens
    assert said.lam == pytest.approx(4 * torch.tanh(torch.tensor(0.5)).item() if opens else 0.0)
    assert torch.equal(out.images, pipe(PROMPT, **small()).images) is not opens
    assert SteeredPipeline(pipe, predictor)(PROMPT, intervention="off", **small()).interventions == [Intervention()]


def test_directions_edit_the_prompt(pipe):
    steered = SteeredPipeline(pipe)
    pairs = {"colour": [("a red ball", "a blue ball"), ("a red mirror", "a blue mirror")]}
    steered.directions = directions = FactorDirections.fit(steered.encode_texts, pairs)
    intervention = Intervention({"colour": 0.5})
    out = steered(PROMPT, intervention=intervention, **small())
    embeds, mask = steered.encode_texts([PROMPT])
    given = Conditions(
        prompt=PromptEmbeds(embeds), edited=PromptEmbeds(directions.edit(embeds, mask, intervention.alpha))
    )
    with attach(pipe, intervention, given):
        expected = pipe(PROMPT, **small()).images
    assert torch.equal(out.images, expected)
    assert not torch.equal(out.images, pipe(PROMPT, **small()).images)
    assert out.nfe == [6]  # an edited prompt costs no row
    with pytest.raises(ValueError, match="unknown factor 'shape'"):
        steered(PROMPT, intervention=Intervention({"shape": 0.5}), **small())
    with pytest.raises(ValueError, match="needs directions"):
        SteeredPipeline(pipe)(PROMPT, intervention=intervention, **small())


def test_a_pooled_vector_is_read_and_left_alone_unless_it_was_fitted():
    build, options = tiny.FAMILIES["sdxl"]
    steered = SteeredPipeline(build())
    settings = {**small(), **options}
    pairs = {"colour": [("a red ball", "a blue ball")]}
    one = Intervention({"colour": 0.5})
    ends = []
    for pooled in (False, True):
        steered.directions = FactorDirections.fit(steered.encode_texts, pairs, pooled=pooled)
        settings["generator"] = torch.Generator().manual_seed(0)
        ends.append(steered(PROMPT, intervention=one, **settings).images)
    assert not torch.equal(*ends)


def test_a_video_model_gives_frames_and_the_schedule_is_the_warped_one():
    build, options = tiny.FAMILIES["wan"]
    steered = SteeredPipeline(build())
    settings = {**small(), **options}
    plain = steered(PROMPT, **settings)
    settings["generator"] = torch.Generator().manual_seed(0)
    out = steered(PROMPT, intervention=Intervention(warp=WarpSpec("moebius", 2.0)), **settings)
    assert out.images is None
    assert out.frames.shape == plain.frames.shape
    assert out.nfe == plain.nfe == [6]
    assert all(late > early for late, early in zip(out.schedule[0][1:], plain.schedule[0][1:], strict=True))


def test_bad_input_is_named(pipe, tiny_image_pipeline):
    steered, one = SteeredPipeline(pipe), Intervention(lam=1.0)
    with pytest.raises(ValueError, match="implies nothing to contrast with"):
        steered("a bird eats a snake", intervention=one, **small())
    with pytest.raises(ValueError, match="'auto' needs a predictor"):
        steered(PROMPT, intervention="auto", **small())
    with pytest.raises(ValueError, match="one for each of 2 prompts"):
        steered([PROMPT, OTHER], counterfactual_prompt=[OTHER], intervention=one, **small())
    with pytest.raises(ValueError, match="generator must be one for each of 2 images, got 3"):
        steered([PROMPT, OTHER], **small(generator=[torch.Generator() for _ in range(3)]))
    with pytest.raises(ValueError, match="has no 'clip_slip'"):
        steered(PROMPT, intervention=one, encode_options={"clip_slip": 1}, **small())
    with pytest.raises(TypeError, match="ImageGenerationPipeline offers no route"):
        SteeredPipeline(tiny_image_pipeline())
