"""Checkpoints of MaskGIT (Chang et al. 2022, arXiv 2202.04200) as `MaskGITTransformer2DModel`.

Published with google-research/maskgit under Apache-2.0, as files of Flax: `maskgit_imagenet256_checkpoint` and
`maskgit_imagenet512_checkpoint`. Nothing is bundled. docs/masked.md says how far a converted model was compared with
the original code.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gendiff.convert.flax_files import read_flax
from gendiff.convert.tensor_table import Made, State, count_of, filled, shape_of, side_of, write_model
from gendiff.errors import InvalidInputError
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel

CODES = 1024
"""V of the published networks. One table holds codes, classes and the hidden token, so the file does not tell."""

EMBED, ATTENTION, MLP, HEAD = "Embed_0", "Attention_0", "Mlp_0", "MlmLayer_0"
WORDS, POSITIONS = (f"{EMBED}/{kind}_embeddings/embedding" for kind in ("word", "position"))


def maskgit_from_state(state: State, codebook_size: int = CODES) -> MaskGITTransformer2DModel:
    """The network, from tensors by their path in the tree of the original code.

    It was trained without leaving the class out, so it has no embedding for "no class": the one of the hidden token
    takes its place, and guidance means nothing.

    Args:
        state: tensors by path, below `params`.
        codebook_size: V; rows of the table beyond V are classes, and the last one the hidden token.

    Raises:
        InvalidInputError: keys are missing or too many, or shapes do not fit.
    """
    vocabulary, dim = shape_of(state, WORDS, 2)
    classes = vocabulary - codebook_size - 1
    if codebook_size < 1 or classes < 1:
        raise InvalidInputError(f"codebook_size must leave a class and a hidden token of {vocabulary} embeddings.")
    rows = shape_of(state, POSITIONS, 2)[0]
    layers = count_of(state, "TransformerLayer_")
    first = f"TransformerLayer_0/{ATTENTION}/self_attention/query/kernel"
    heads, head_dim = shape_of(state, first, 3)[1:]
    config = {
        "sample_size": side_of(f"{POSITIONS} less one row", rows - 1),
        "codebook_size": codebook_size,
        "num_classes": classes,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "mlp_ratio": shape_of(state, f"TransformerLayer_0/{MLP}/intermediate_output/kernel", 2)[1] / dim,
        "norm": "post",
        "norm_eps": 1e-12,
        "dropout": 0.1,
        "gelu": "tanh",
    }
    table = {
        "word_embed.weight": Made((WORDS,), lambda table: table[[*range(codebook_size), -1]]),
        "class_embed.weight": Made((WORDS,), lambda table: table[codebook_size:]),
        "pos_embed": Made((POSITIONS,), lambda table: table[None]),
        "head_bias": Made((f"{HEAD}/mlm_bias/bias",), lambda bias: bias[:codebook_size]),
    }
    table |= _norm("embed_norm", f"{EMBED}/embeddings_ln") | _norm("head_norm", f"{HEAD}/mlm_ln")
    table |= _dense("head_dense", f"{HEAD}/mlm_dense")
    for layer in range(layers):
        table |= _block(f"blocks.{layer}", f"TransformerLayer_{layer}")
    return filled(MaskGITTransformer2DModel, config, state, table)


def convert(source: str | Path, destination: str | Path, codebook_size: int = CODES) -> MaskGITTransformer2DModel:
    """Write a checkpoint as a folder for `MaskGITTransformer2DModel.from_pretrained`. The tensors keep their dtype.

    Args:
        source: a file that `flax.serialization.to_bytes` wrote.
        destination: folder to write, whole or not at all; it must not exist, or be empty.
        codebook_size: see `maskgit_from_state`.

    Returns: the network that was written.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        ImportError: msgpack is not installed.
        InvalidInputError: it is not such a checkpoint; the message names the keys.
    """

    def build(file: Path) -> MaskGITTransformer2DModel:
        state = {name.removeprefix("params/"): value for name, value in read_flax(file).items()}
        return maskgit_from_state(state, codebook_size)

    return write_model(source, destination, build)


def _block(ours: str, theirs: str) -> dict[str, Made]:
    attention = f"{theirs}/{ATTENTION}/self_attention"
    inputs = tuple(f"{attention}/{part}" for part in ("query", "key", "value"))
    return {
        f"{ours}.attn.to_qkv.weight": Made(tuple(f"{name}/kernel" for name in inputs), _from_heads),
        f"{ours}.attn.to_qkv.bias": Made(tuple(f"{name}/bias" for name in inputs), lambda bias: bias.flatten()),
        f"{ours}.attn.to_out.weight": Made((f"{attention}/out/kernel",), lambda kernel: kernel.flatten(0, 1).T),
        f"{ours}.attn.to_out.bias": Made((f"{attention}/out/bias",)),
        **_norm(f"{ours}.norm1", f"{theirs}/{ATTENTION}/attention_output_ln"),
        **_dense(f"{ours}.fc1", f"{theirs}/{MLP}/intermediate_output"),
        **_dense(f"{ours}.fc2", f"{theirs}/{MLP}/layer_output"),
        **_norm(f"{ours}.norm2", f"{theirs}/{MLP}/layer_output_ln"),
    }


def _from_heads(kernel: Tensor) -> Tensor:
    """(D, H, D / H), from rows to heads, to (D, D) as a linear layer holds it."""
    return kernel.flatten(1).T


def _dense(ours: str, theirs: str) -> dict[str, Made]:
    weight = Made((f"{theirs}/kernel",), lambda kernel: kernel.T)
    return {f"{ours}.weight": weight, f"{ours}.bias": Made((f"{theirs}/bias",))}


def _norm(ours: str, theirs: str) -> dict[str, Made]:
    return {f"{ours}.weight": Made((f"{theirs}/scale",)), f"{ours}.bias": Made((f"{theirs}/bias",))}
