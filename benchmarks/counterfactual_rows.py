"""The rows of the counterfactual table: who answers the questions, and what is measured about the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from counterfactual_questions import Exam, Examiner, Question
from torch import Tensor

from gendiff.metrics import counterfactual as metrics
from gendiff.metrics.disentanglement import dci
from gendiff.metrics.minimality import minimality
from gendiff.pipelines.abduction import AbductedState
from gendiff.pipelines.counterfactual import CounterfactualPipeline, CounterfactualPipelineOutput

CHAIN = (1, 10)
"""Lengths of the chains of composition and reversibility."""


@dataclass(frozen=True)
class Row:
    """How a model is asked.

    Attributes:
        name: of the row.
        about: what it shows.
        inversion, noise, guidance_scale: arguments of the pipeline.
        composition: whether null interventions are chained.
        everything: whether reversibility, minimality and DCI are measured too.
    """

    name: str
    about: str
    inversion: str = "edict"
    noise: str = "abducted"
    guidance_scale: float = 1.0
    composition: bool = False
    everything: bool = False

    def passes(self, variables: int, steps: int, images: int, chain_images: int) -> int:
        """Network passes, one for each image, that a seed of this row costs."""
        walk = steps * (2 if self.inversion == "edict" else 1)
        abductions = 1 if self.noise == "abducted" else 0
        answers = variables * (1 if self.guidance_scale == 1 else 2)
        nulls, trips = self.composition * max(CHAIN), self.everything * variables * 2 * max(CHAIN)
        return walk * (images * (abductions + answers + self.composition) + 2 * chain_images * (nulls + trips))


MODEL_ROWS = (
    Row("model", "as it answers by default: EDICT, no guidance", composition=True, everything=True),
    Row("ddim", "DDIM inversion", inversion="ddim", composition=True),
    Row("random_noise", "decoder noise drawn, not abducted: an interventional sample", noise="random"),
    Row("guidance_0.5", "factual guidance 0.5", guidance_scale=0.5),
    Row("guidance_1.5", "factual guidance 1.5", guidance_scale=1.5),
    Row("guidance_3", "factual guidance 3", guidance_scale=3.0),
)
REFERENCE_ROWS = {
    "input": "the factual image, returned as it is",
    "no_propagation": "the true renderer, descendants left as they were",
    "readout_floor": "the true counterfactual: what the read-out itself gets wrong",
}


@dataclass(frozen=True)
class Answer:
    """What a row says to one question.

    Attributes:
        images: (B, C, S, S) in [-1, 1].
        values: counterfactual values (B,) by name that the row computed, None if it computes none.
        unclamped: of a model, the images before their final clamp to [-1, 1].
    """

    images: Tensor
    values: Mapping[str, Tensor] | None
    unclamped: Tensor | None = None


class Student:
    """A pipeline that answers the questions of one row, in batches.

    Args:
        pipe: on its device, in evaluation mode.
        row: how it is asked.
        steps: number of sampling steps.
        batch_size: images at once.
        seed: of drawn noise.
    """

    def __init__(self, pipe: CounterfactualPipeline, row: Row, steps: int, batch_size: int, seed: int):
        self.pipe, self.row, self.steps, self.batch_size = pipe, row, steps, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._studied: list[AbductedState | Tensor] = []

    def study(self, images: Tensor) -> None:
        """Take in images (B, C, S, S) in [-1, 1]; abduction is done once for all questions about them."""
        pixels = ((images + 1) / 2).clamp(0, 1).split(self.batch_size)
        if self.row.noise == "abducted":
            self._studied = [self.pipe.abduct(chunk, self.steps, self.row.inversion) for chunk in pixels]
        else:
            self._studied = list(pixels)

    def answer(self, do: Mapping[str, Tensor]) -> Answer:
        """The studied images under `do`, raw values (B,) by name; empty reconstructs."""
        parts, start = [], 0
        for studied in self._studied:
            size = studied.batch_size if isinstance(studied, AbductedState) else len(studied)
            parts.append(self._answer(studied, {name: values[start : start + size] for name, values in do.items()}))
            start += size
        latents = torch.cat([part.latents[0] if self.row.inversion == "edict" else part.latents for part in parts])
        names = self.pipe.graph.names
        values = {name: torch.cat([part.counterfactual[name] for part in parts]).cpu() for name in names}
        return Answer(latents.cpu().clamp(-1, 1), values, latents.cpu())

    def ask(self, images: Tensor, do: Mapping[str, Tensor]) -> Tensor:
        """What becomes of images (B, C, S, S) in [-1, 1] under `do`, from the pictures alone."""
        other = Student(self.pipe, self.row, self.steps, self.batch_size, seed=0)
        other.study(images)
        return other.answer(do).images

    def _answer(self, studied: AbductedState | Tensor, do: Mapping[str, Tensor]) -> CounterfactualPipelineOutput:
        scale = self.row.guidance_scale
        if isinstance(studied, AbductedState):
            return self.pipe.predict(studied, do, guidance_scale=scale, output_type="latent")
        answer = self.pipe(
            studied,
            do,
            guidance_scale=scale,
            num_inference_steps=self.steps,
            inversion=self.row.inversion,
            noise=self.row.noise,
            generator=self._generator,
            output_type="latent",
        )
        assert isinstance(answer, CounterfactualPipelineOutput)
        return answer

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The encoder's mean noise u (B, D) of images in [-1, 1]."""
        chunks = (chunk.to(self.pipe.device, self.pipe.dtype) for chunk in images.split(self.batch_size))
        return torch.cat([self.pipe.encoder(chunk).mean for chunk in chunks])


def reference_answer(name: str, question: Question, exam: Exam) -> Answer | None:
    """What a reference row says, None where it has no answer."""
    if name == "input":
        return Answer(exam.images, exam.labels)
    if name == "no_propagation":
        alone = {**exam.labels, question.variable: question.values}
        return None if question.no_propagation is None else Answer(question.no_propagation, alone)
    return None if question.truth is None else Answer(question.truth, None)


def mark(examiner: Examiner, exam: Exam, question: Question, answer: Answer) -> Iterator[dict[str, Any]]:
    """Cells that compare one answer with the truth."""
    graph, do, count = examiner.graph, question.variable, len(exam.images)
    if question.truth is not None:
        yield cell("cf_l1", metrics.cf_l1(answer.images, question.truth), count, do)
        yield cell("cf_gain", metrics.cf_gain(answer.images, question.truth, exam.images), count, do)
    read = examiner.read(answer.images)
    for name, value in metrics.effectiveness(graph, read, question.true_values).items():
        metric = "effectiveness" if graph[name].kind == "continuous" else "accuracy"
        yield cell(metric, value, count, do, name)
    for name, value in metrics.leakage(graph, read, exam.read, do).items():
        yield cell("leakage", value, count, do, name)
    if answer.values is not None:
        for name, value in metrics.propagation_error(graph, answer.values, question.true_values, do).items():
            yield cell("propagation_error", value, count, do, name)


def mark_composition(student: Student, exam: Exam, chain_images: int) -> Iterator[dict[str, Any]]:
    """Null interventions: once on all images, ten times over on the first `chain_images`."""
    back = student.answer({})
    assert back.unclamped is not None
    count = min(chain_images, len(exam.images))
    once = metrics.composition(exam.images, lambda _: back.images, counts=(1,))
    chain = metrics.composition(exam.images[:count], lambda images: student.ask(images, {}), counts=CHAIN[1:])
    yield cell("null_max_error", (back.unclamped - exam.images).abs().max().item(), len(exam.images))
    yield cell("composition_1", once[1], len(exam.images))
    for k, value in chain.items():
        yield cell(f"composition_{k}", value, count)


def mark_reversibility(student: Student, exam: Exam, question: Question, chain_images: int) -> Iterator[dict[str, Any]]:
    """There and back, one and ten times, on the first `chain_images`; each answer is asked about as a picture."""
    name, count = question.variable, min(chain_images, len(exam.images))
    there, back = {name: question.values[:count]}, {name: exam.labels[name][:count]}
    drift = metrics.reversibility(
        exam.images[:count],
        lambda images: student.ask(images, there),
        lambda images: student.ask(images, back),
        counts=CHAIN,
    )
    for k, value in drift.items():
        yield cell(f"reversibility_{k}", value, count, name)


def mark_minimality(
    student: Student,
    exam: Exam,
    question: Question,
    answer: Answer,
    held_out: tuple[Tensor, Tensor],
) -> Iterator[dict[str, Any]]:
    """Minimality of one answer, by the encoder's features and with held-out images as the real ones."""
    graph, name = student.pipe.graph, question.variable
    scores = minimality(
        graph[name],
        student.features(exam.images),
        student.features(answer.images),
        student.features(held_out[0]),
        exam.labels[name],
        question.values,
        held_out[1][:, graph.index(name)],
    )
    known = scores[~scores.isnan()]
    if len(known):
        yield cell("minimality", known.mean().item(), len(known), name)


def mark_dci(student: Student, held_out: tuple[Tensor, Tensor], seed: int) -> Iterator[dict]:
    """DCI of the factors that the encoder and the mechanisms give held-out images."""
    graph = student.pipe.graph
    with torch.no_grad():
        factors = student.pipe.mechanisms(student.features(held_out[0]))
    scores, count = dci(graph, factors, held_out[1], seed), len(factors)
    yield cell("disentanglement", scores.disentanglement, count)
    yield cell("completeness", scores.completeness, count)
    for name, value in scores.informativeness.items():
        yield cell("informativeness", value, count, of=name)


def sit_model_row(
    student: Student, examiner: Examiner, exam: Exam, chain_images: int, seed: int, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[Answer]]:
    """All cells of a row of a model, and its answers in the order of the questions."""
    row = student.row
    say("abducting")
    student.study(exam.images)
    cells, answers = [], []
    for question in exam.questions:
        say(f"do({question.variable})")
        answers.append(student.answer({question.variable: question.values}))
        cells += mark(examiner, exam, question, answers[-1])
    if row.composition:
        say("composition")
        cells += mark_composition(student, exam, chain_images)
    if row.everything:
        held_out = examiner.held_out(seed, len(exam.images))
        say("DCI")
        cells += mark_dci(student, held_out, seed)
        for question, answer in zip(exam.questions, answers, strict=True):
            say(f"minimality and reversibility, do({question.variable})")
            cells += mark_minimality(student, exam, question, answer, held_out)
            cells += mark_reversibility(student, exam, question, chain_images)
    return cells, answers


def sit_reference_row(name: str, examiner: Examiner, exam: Exam) -> list[dict[str, Any]]:
    """All cells of a reference row."""
    cells = []
    for question in exam.questions:
        answer = reference_answer(name, question, exam)
        if answer is not None:
            cells += mark(examiner, exam, question, answer)
    return cells


def cell(metric: str, value: float, count: int, do: str | None = None, of: str | None = None) -> dict[str, Any]:
    """One figure: `metric` of variable `of` under do(`do`), over `count` images."""
    if not math.isfinite(value):
        raise ValueError(f"{metric} of {of} under do({do}) is {value}.")
    place = {key: name for key, name in (("do", do), ("of", of)) if name is not None}
    return {"metric": metric, **place, "value": value, "n": count}
