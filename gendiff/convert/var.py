"""Checkpoints of VAR (Tian et al. 2024, arXiv 2404.02905) as `NextFrequencyPipeline`.

A tokenizer and a transformer, saved apart under the names of VAR's own code. All that their configs need is read from
names and shapes. docs/var.md says how far the converted models were compared with the original code.

Published as FoundationVision/var under the MIT licence: `vae_ch160v4096z32.pth`, and `var_d16.pth`, `var_d20.pth`,
`var_d24.pth`, `var_d30.pth` (256 px) and `var_d36.pth` (512 px), all with that one tokenizer. Nothing is bundled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gendiff.convert.tensor_files import check_destination, read_tensors, shown
from gendiff.convert.var_models import Model, State, tokenizer_from_var, transformer_from_var
from gendiff.errors import InvalidInputError
from gendiff.files import written_whole
from gendiff.pipelines.next_frequency import NextFrequencyPipeline
from gendiff.samplers.next_frequency import NextFrequencyScheduler

TOP_K, TOP_P = 900, 0.96
"""What VAR was evaluated with."""


def convert(
    vae: str | Path, transformer: str | Path, destination: str | Path, class_names: Sequence[str] = ()
) -> NextFrequencyPipeline:
    """Write a tokenizer and a transformer as a folder for `NextFrequencyPipeline.from_pretrained`.

    The tensors keep their dtype. The scheduler draws from the best 900 codes and 96 % of the probability.

    Args:
        vae: the tokenizer's file, `.pt`, `.pth` or `.safetensors`; pickles are read without running code from them.
            It may hold the networks of a training run (`trainer`), the same file as for `transformer` then.
        transformer: the transformer's file, likewise.
        destination: folder to write, whole or not at all; it must not exist, or be empty.
        class_names: one for each class; none leaves the classes their numbers.

    Returns: the pipeline that was written.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        UnsafeFileError: a file cannot be read without running code from it.
        InvalidInputError: a file is not such a checkpoint, the message names the keys; or the two do not fit together.
    """
    sources, destination = {"vae": Path(vae), "transformer": Path(transformer)}, Path(destination)
    for name, source in sources.items():
        if not source.is_file():
            raise FileNotFoundError(f"{name}: no file {source}.")
    check_destination(destination)
    if repeated := [name for name, count in Counter(class_names).items() if count > 1]:
        raise InvalidInputError(f"class_names must tell classes apart, got {shown(repeated)} more than once.")
    network = _from_file(sources["transformer"], "var_wo_ddp", transformer_from_var)
    stages, classes = network.stages, network.config["num_classes"]
    if class_names and len(class_names) != classes:
        raise InvalidInputError(f"class_names must be {classes}, one for each class, got {len(class_names)}.")
    tokenizer = _from_file(sources["vae"], "vae_local", lambda state: tokenizer_from_var(state, stages))
    filtered = network.config["codebook_size"] > TOP_K
    scheduler = NextFrequencyScheduler(stages, TOP_K, TOP_P) if filtered else NextFrequencyScheduler(stages)
    try:
        pipe = NextFrequencyPipeline(tokenizer, network, scheduler, class_names)
    except ValueError as error:
        raise InvalidInputError(f"{vae} and {transformer} do not fit together: {error}") from error
    with written_whole(destination) as folder:
        pipe.save_pretrained(folder)
    return pipe


def _from_file(source: Path, key: str, build: Callable[[State], Model]) -> Model:
    try:
        return build(_select(read_tensors(source), key))
    except InvalidInputError as error:
        raise InvalidInputError(f"{source}: {error}") from error


def _select(content: State, key: str) -> State:
    """The tensors of one network, from a file that may hold a whole training run; names free of what compiling adds."""
    for name in ("trainer", key):
        inner = content.get(name)
        flat = {full.removeprefix(f"{name}."): value for full, value in content.items() if full.startswith(f"{name}.")}
        content = inner if isinstance(inner, Mapping) else flat or content
    return {name.replace("_orig_mod.", ""): value for name, value in content.items()}
