"""What abduction finds about an image, and the check that it fits the pipeline it is handed to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gendiff.causal.graph import CausalGraph
from gendiff.samplers.inversion import SCHEMES


@dataclass(frozen=True)
class AbductedState:
    """Everything about an image that an intervention leaves alone; reusable for any number of questions.

    Attributes:
        u: causal noise, (B, D).
        z: causal factors, (B, D).
        style: latents outside the graph, (B, S), S may be 0.
        noise: decoder noise, (B, C, H, W), or (2, B, C, H, W) for the pair of "edict".
        scheme: inversion that found the noise.
        num_inference_steps: its number of steps; prediction walks the same grid back.
        graph: the causal graph that u and z belong to.
    """

    u: Tensor
    z: Tensor
    style: Tensor
    noise: Tensor
    scheme: str
    num_inference_steps: int
    graph: CausalGraph

    @property
    def batch_size(self) -> int:
        return len(self.u)

    def repeated(self, index: int, count: int) -> AbductedState:
        """`count` copies of one image, to ask it several questions in one batch."""
        rows = [index] * count
        noise = self.noise[:, rows] if self.scheme == "edict" else self.noise[rows]
        return replace(self, u=self.u[rows], z=self.z[rows], style=self.style[rows], noise=noise)

    def check_shapes(self, graph: CausalGraph, style_dim: int, sample_shape: tuple[int, int, int]) -> None:
        """Raise ValueError, naming the field, unless the state belongs to `graph` and to images of `sample_shape`."""
        if self.graph != graph:
            raise ValueError(f"state.graph is {self.graph}, but this pipeline's graph is {graph}.")
        if self.scheme not in SCHEMES:
            raise ValueError(f"state.scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}.")
        batch = (2, self.batch_size) if self.scheme == "edict" else (self.batch_size,)
        wanted = {
            "u": (self.batch_size, graph.dim),
            "z": (self.batch_size, graph.dim),
            "style": (self.batch_size, style_dim),
            "noise": (*batch, *sample_shape),
        }
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"state.{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}.")
