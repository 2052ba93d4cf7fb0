"""Checkpoints of networks over hidden tokens, against what their own code computed with the same weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import masked_weights as given
import msgpack
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gendiff.cli import main
from gendiff.convert import amused, autonat, halton, mar, maskgit
from gendiff.errors import InvalidInputError, UnsafeFileError
from gendiff.models.masked.halton import HaltonTransformer2DModel
from gendiff.models.masked.mar import MARTransformer2DModel
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

State = dict[str, Tensor]
NULL = torch.tensor([False, True, False])

BUILD: dict[str, Callable[[State], Any]] = {
    "halton": lambda state: halton.halton_from_state(state, given.HEADS["halton"]),
    "maskgit": lambda state: maskgit.maskgit_from_state(state, given.V),
    "autonat": lambda state: autonat.autonat_from_state(state, given.HEADS["autonat"]),
    "mar": lambda state: mar.mar_from_state(state, given.HEADS["mar"]),
}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert theirs.std() > 0.5


@torch.no_grad()
def predicted(kind: str, model: Any) -> Tensor:
    """What their code computed: the second image without its class, where the network knows of none."""
    labels = given.LABELS if kind == "maskgit" else torch.where(NULL, given.C, given.LABELS)
    if kind == "mar":
        # As many hidden in each image, which their code needs.
        hidden = torch.stack([torch.arange(given.N).roll(5 * b) % given.N < 9 for b in range(given.B)])
        return model(given.vectors(), hidden, labels).sample
    return model(given.tokens(), given.HIDDEN, labels).sample


@pytest.mark.parametrize("kind", given.KINDS)
def test_a_network_computes_what_its_own_code_computes(kind):
    model = BUILD[kind](given.state_dict(kind))
    close(predicted(kind, model), given.outputs()[kind])
    assert not model.training and all(not p.is_meta for p in model.parameters())


@torch.no_grad()
def test_the_head_of_mar_computes_what_its_own_code_computes():
    x, t, z = given.head_inputs()
    close(BUILD["mar"](given.state_dict("mar")).head(x, t, z), given.outputs()["mar.head"])


def config_of(kind: str) -> dict[str, Any]:
    return dict(BUILD[kind](given.state_dict(kind)).config)


def test_configs_are_read_from_names_and_shapes():
    sizes = {"sample_size": given.SIDE, "codebook_size": given.V, "num_classes": given.C}
    expected = {
        "halton": {**sizes, "num_layers": 2, "num_attention_heads": 3, "attention_head_dim": 10, "hidden_size": 32}
        | {"mlp_dim": 256, "num_registers": 2},
        "maskgit": {**sizes, "num_layers": 2, "num_attention_heads": 4, "mlp_ratio": 3.0, "norm": "post"}
        | {"norm_eps": 1e-12, "gelu": "tanh"},
        "autonat": {**sizes, "num_layers": 5, "long_skips": True, "qkv_bias": False, "class_norm": True}
        | {"norm_eps": 1e-5, "embed_norm_eps": 1e-6},
        "mar": {"sample_size": 4, "token_channels": given.CHANNELS, "num_classes": given.C, "num_encoder_layers": 2}
        | {"num_decoder_layers": 1, "num_buffer_rows": given.BUFFERS, "head_width": given.WIDTH, "head_layers": 2},
    }
    for kind, entries in expected.items():
        config = config_of(kind)
        assert {name: config[name] for name in entries} == entries


def test_heads_are_those_of_the_published_network_unless_told():
    with pytest.raises(InvalidInputError, match=r"num_heads must be given: no published network is 32 wide, but \[768"):
        mar.mar_from_state(given.state_dict("mar"))
    with pytest.raises(InvalidInputError, match="num_heads must divide the width 32, got 5"):
        autonat.autonat_from_state(given.state_dict("autonat"), 5)
    with pytest.raises(InvalidInputError, match="num_heads must divide the 30 numbers of all heads, got 4"):
        halton.halton_from_state(given.state_dict("halton"), 4)
    assert (halton.HEADS[512], autonat.HEADS[768], mar.HEADS[1280]) == (6, 8, 16)


ONE_KEY = {
    "halton": "transformer.layers.1.attn.wk.weight",
    "maskgit": "TransformerLayer_1/Attention_0/self_attention/key/bias",
    "autonat": "out_blocks.1.skip_linear.bias",
    "mar": "diffloss.net.res_blocks.1.adaLN_modulation.1.bias",
}


@pytest.mark.parametrize("kind", given.KINDS)
def test_keys_missing_or_too_many_and_shapes_are_named(kind):
    state, name = given.state_dict(kind), ONE_KEY[kind]
    with pytest.raises(InvalidInputError, match=rf"^missing keys: {name}\.$"):
        BUILD[kind]({key: value for key, value in state.items() if key != name})
    extra = {f"lora_{index}": torch.zeros(1) for index in range(13)}
    listed = ", ".join(f"lora_{index}" for index in range(10))
    with pytest.raises(InvalidInputError, match=rf"^unexpected keys: {listed} and 3 more\.$"):
        BUILD[kind](state | extra)
    with pytest.raises(InvalidInputError, match=rf"do not fit: .*{name} \(7,\).*, expected \("):
        BUILD[kind]({**state, name: torch.zeros(7)})
    with pytest.raises(InvalidInputError, match=rf"{name} must be a tensor of floating-point numbers, got torch.int64"):
        BUILD[kind]({**state, name: state[name].long()})


def test_one_network_is_not_taken_for_another():
    for kind in given.KINDS:
        for other in given.KINDS:
            if kind != other:
                with pytest.raises(InvalidInputError, match="missing keys: "):
                    BUILD[kind](given.state_dict(other))


def test_what_these_converters_take_for_granted_is_checked():
    state = given.state_dict("halton")
    with pytest.raises(InvalidInputError, match=r"head\.weight must be tok_emb\.weight again"):
        BUILD["halton"]({**state, "head.weight": state["tok_emb.weight"] + 1})
    with pytest.raises(InvalidInputError, match=r"in_proj\.weight: networks that join 2 x 2 tokens .* not supported"):
        BUILD["halton"]({**state, "in_proj.weight": torch.zeros(32, 32, 2, 2)})
    with pytest.raises(InvalidInputError, match=r"pos_emb\.weight must have a row for each token .* got 15"):
        BUILD["halton"]({**state, "pos_emb.weight": torch.zeros(15, 32)})
    assert BUILD["halton"]({n: v for n, v in state.items() if n != "reg_tokens.weight"}).num_prefix_rows == 0
    with pytest.raises(InvalidInputError, match="codebook_size must leave a class and a hidden token of 30 embeddings"):
        maskgit.maskgit_from_state(given.state_dict("maskgit"), 29)


def test_without_a_class_to_leave_out_maskgit_gets_the_hidden_token_for_it():
    model = BUILD["maskgit"](given.state_dict("maskgit"))
    assert torch.equal(model.class_embed.weight[model.null_class], model.word_embed.weight[model.mask_id])


def flax_bytes(state: State) -> bytes:
    """As `flax.serialization.to_bytes` writes a tree: arrays are extension 1, msgpack of shape, dtype and bytes."""
    tree: dict[str, Any] = {}
    for path, value in state.items():
        node = tree
        *folders, leaf = path.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        array = (tuple(value.shape), str(value.dtype).removeprefix("torch."), value.numpy().tobytes())
        node[leaf] = msgpack.ExtType(1, msgpack.packb(array, use_bin_type=True))
    return msgpack.packb({"params": tree}, strict_types=False)


def save(kind: str, folder: Path) -> Path:
    """A file as it is published."""
    state, file = given.state_dict(kind), folder / "weights.pth"
    if kind == "maskgit":
        file = folder / "maskgit_imagenet256_checkpoint"
        file.write_bytes(flax_bytes(state))
    elif kind == "halton":
        wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
        training = {"iter": 9, "global_epoch": 1, "optimizer_state_dict": {"state": {0: {"step": torch.ones(())}}}}
        torch.save({"model_state_dict": wrapped, **training}, file)
    elif kind == "mar":
        other = {name: torch.zeros_like(value) for name, value in state.items()}
        training = {"optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": argparse.Namespace(lr=1e-4)}
        torch.save({"model": other, "model_ema": state, **training}, file)
    else:
        torch.save(state, file)
    return file


COMMANDS = {
    "halton": ("halton-maskgit", ["--heads", "3"], HaltonTransformer2DModel, "2 blocks, 3 heads of 10"),
    "maskgit": ("maskgit", ["--codebook-size", str(given.V)], MaskGITTransformer2DModel, "2 blocks, 4 heads of 8"),
    "autonat": ("autonat", ["--heads", "4"], MaskGITTransformer2DModel, "5 blocks, 4 heads of 8"),
    "mar": ("mar", ["--heads", "2"], MARTransformer2DModel, "2 + 1 blocks, 2 heads of 16"),
}


@pytest.mark.parametrize("kind", given.KINDS)
def test_the_command(kind, tmp_path, capsys):
    file, out = save(kind, tmp_path), tmp_path / "out"
    name, options, cls, sizes = COMMANDS[kind]
    command = ["convert", name, str(file), str(out), *options]
    assert main(command) == 0
    assert f"{out}: {cls.__name__}, {sizes}, 16 tokens, 5 classes, " in capsys.readouterr().out
    model = cls.from_pretrained(out)
    assert torch.equal(predicted(kind, model), predicted(kind, BUILD[kind](given.state_dict(kind))))
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path / "no.pth"), str(tmp_path / "new"), *options]) == 2
    assert "source: no file" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "out"}


@torch.no_grad()
def test_safetensors_and_half_precision_and_the_other_network(tmp_path):
    state = {name: value.half() for name, value in given.state_dict("mar").items()}
    save_file(state, tmp_path / "mar-base.safetensors")
    model = mar.convert(tmp_path / "mar-base.safetensors", tmp_path / "half", num_heads=2)
    assert model.dtype == torch.float16 and torch.equal(model.token_proj.weight, state["z_proj.weight"])
    file = save("mar", tmp_path)
    assert not mar.convert(file, tmp_path / "model", key="model", num_heads=2).decoder_embed.weight.any()
    with pytest.raises(InvalidInputError, match=r"weights\.pth: key must be one of model, model_ema, got 'ema'"):
        mar.convert(file, tmp_path / "ema", key="ema", num_heads=2)
    assert not (tmp_path / "ema").exists()


def test_two_names_for_one_parameter_are_refused(tmp_path):
    state = given.state_dict("autonat")
    torch.save({**state, "module.norm.weight": state["norm.weight"]}, tmp_path / "two.pth")
    with pytest.raises(InvalidInputError, match=r"module\.norm\.weight names norm\.weight, which another name has"):
        autonat.convert(tmp_path / "two.pth", tmp_path / "out", 4)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_pickles_that_hold_code_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_ema": given.state_dict("mar"), "args": Harmful()}, "bad.pth")
    for convert in (mar.convert, halton.convert, autonat.convert):
        with pytest.raises(UnsafeFileError, match="plain tensors"):
            convert("bad.pth", "out", num_heads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


FLAX = {
    "half a file": (lambda data: data[: len(data) // 2], "not a whole file of flax.serialization.to_bytes"),
    "no tree": (lambda data: msgpack.packb([1, 2]), "expected a tree of parameters, got list"),
    "text": (lambda data: b"<html>not found</html>", "not a whole file|expected a tree"),
    "another extension": (
        lambda data: msgpack.packb({"a": msgpack.ExtType(7, b"")}),
        "an extension of type 7, expected arrays alone",
    ),
    "a dtype": (
        lambda data: msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8)))}),
        "an array of dtype 'object', expected one of",
    ),
    "too few bytes": (
        lambda data: msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"\0" * 8)))}),
        r"an array of shape \(3,\) and float32 in 8 bytes",
    ),
    "pieces": (
        lambda data: msgpack.packb({"a": {"__msgpack_chunked_array__": True, "chunks": {}}}),
        "a is an array of more than a gigabyte",
    ),
}


@pytest.mark.parametrize("case", FLAX)
def test_what_is_wrong_with_a_file_of_flax_is_named(case, tmp_path):
    change, message = FLAX[case]
    (tmp_path / "file").write_bytes(change(flax_bytes(given.state_dict("maskgit"))))
    with pytest.raises(InvalidInputError, match=message):
        maskgit.convert(tmp_path / "file", tmp_path / "out", given.V)
    assert not (tmp_path / "out").exists()


def test_without_msgpack_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(ImportError, match=r"pip install 'gendiff\[flax\]'"):
        maskgit.convert(save("maskgit", tmp_path), tmp_path / "out", given.V)


@pytest.fixture
def amused_folder(tiny_amused, tmp_path) -> Path:
    folder = tmp_path / "amused"
    for part in amused.PARTS:
        getattr(tiny_amused, part).save_pretrained(folder / part)
    return folder


@torch.no_grad()
def test_aMUSEd_becomes_a_pipeline(amused_folder, tiny_amused, tmp_path, capsys):
    assert main(["convert", "amused", str(amused_folder), str(tmp_path / "out")]) == 0
    assert "MaskedGenerationPipeline, 16 tokens, 8 px, " in capsys.readouterr().out
    pipe = MaskedGenerationPipeline.from_pretrained(tmp_path / "out")
    for ours, theirs in ((pipe.transformer, tiny_amused.transformer), (pipe.image_tokenizer, tiny_amused.vqvae)):
        expected = list(theirs.state_dict().values())
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), expected, strict=True))
    assert main(["convert", "amused", str(amused_folder), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_is_wrong_with_a_folder_of_aMUSEd_is_named(amused_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="source: no folder"):
        amused.convert(tmp_path / "no", out)
    weights = next((amused_folder / "vqvae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsafeFileError, match="vqvae: weights as a pickle alone"):
        amused.convert(amused_folder, out)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(InvalidInputError, match="vqvae: no weights as safetensors"):
        amused.convert(amused_folder, out)
    for path in (amused_folder / "vqvae").iterdir():
        path.unlink()
    (amused_folder / "vqvae").rmdir()
    with pytest.raises(InvalidInputError, match="no folders vqvae, which aMUSEd has"):
        amused.convert(amused_folder, out)
    assert not out.exists()


def test_a_tokenizer_in_the_place_of_the_transformer_is_refused(amused_folder, tiny_amused, tmp_path):
    tiny_amused.vqvae.save_pretrained(amused_folder / "transformer")
    with pytest.raises(InvalidInputError, match="amused: "):
        amused.convert(amused_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
