"""VAR's checkpoints, against what its own code computed with the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import var_weights
from safetensors.torch import save_file
from torch import Tensor

from gendiff.cli import main
from gendiff.convert.var import convert
from gendiff.convert.var_models import (
    tokenizer_from_var,
    tokenizer_to_var,
    transformer_from_var,
    transformer_to_var,
)
from gendiff.errors import InvalidInputError, UnsafeFileError
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.pipelines.base import load_pipeline
from gendiff.pipelines.next_frequency import NextFrequencyPipeline
from gendiff.samplers.next_frequency import NextFrequencyScheduler

KINDS, STAGES, TEN_STAGES = var_weights.KINDS, var_weights.STAGES, var_weights.TEN_STAGES
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tokenizer_state() -> State:
    return var_weights.state_dict("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_state) -> FrequencyVQModel:
    return tokenizer_from_var(tokenizer_state, STAGES)


def by_stage(tokens: Tensor, stages=STAGES) -> list[Tensor]:
    return list(tokens.split([side**2 for side in stages], dim=1))


def close(ours: Tensor, theirs: Tensor, most: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=most, rtol=0)


@torch.no_grad()
def test_the_tokenizer_computes_what_vars_code_computes(tokenizer):
    expected = var_weights.outputs()
    encoded = tokenizer.encode(var_weights.images())
    assert torch.equal(torch.cat(encoded.tokens, dim=1), expected["tokenizer.tokens"])
    close(encoded.f_hat, expected["tokenizer.f_hat"], 1e-5)
    close(tokenizer.decode(tokens=encoded.tokens), expected["tokenizer.image"], 2e-4)
    close(tokenizer.tokens_to_inputs(encoded.tokens), expected["tokenizer.inputs"], 1e-5)
    assert expected["tokenizer.image"].std() > 0.3 and expected["tokenizer.inputs"].std() > 0.3


@torch.no_grad()
def test_ten_stages_share_four_convolutions_as_in_vars_code(tokenizer_state):
    """Two of the ten lie between two convolutions: a table made in any other way gives other tokens."""
    model = tokenizer_from_var(tokenizer_state, TEN_STAGES)
    assert model.config["phi_index"] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3] and model.config["sample_size"] == 256
    expected, f = var_weights.outputs(), var_weights.latent_map()
    quantized = model.quantizer.quantize([f] * 10)
    assert torch.equal(torch.cat(quantized.tokens, dim=1), expected["ten.tokens"])
    close(quantized.sums[-1], expected["ten.f_hat"], 1e-5)
    close(model.tokens_to_inputs(quantized.tokens), expected["ten.inputs"], 1e-5)
    model.quantizer.smoother_index = (0, 0, 0, 1, 1, 2, 2, 2, 3, 3)
    other = torch.cat(model.quantizer.quantize([f] * 10).tokens, dim=1)
    assert (other != expected["ten.tokens"]).float().mean() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_computes_what_vars_code_computes(kind, tokenizer):
    expected = var_weights.outputs()
    model = transformer_from_var(var_weights.state_dict(kind))
    labels = torch.tensor(var_weights.LABELS)
    logits = model(expected["tokenizer.inputs"], labels).sample
    close(logits, expected[f"{kind}.logits"], 1e-5)
    others = [other for other in KINDS if other != kind]
    assert all((logits - expected[f"{other}.logits"]).abs().max() > 0.01 for other in others)
    pipe = NextFrequencyPipeline(tokenizer, model, NextFrequencyScheduler(STAGES))
    pipe.set_progress_bar_config(disable=True)
    greedy = pipe(labels, guidance_scale=2.5, top_k=1, output_type="latent").tokens
    assert torch.equal(torch.cat(greedy, dim=1), expected[f"{kind}.greedy"])


def test_there_and_back_gives_the_same_bits(tokenizer, tokenizer_state):
    back = tokenizer_to_var(tokenizer)
    assert back.keys() == tokenizer_state.keys()
    assert all(torch.equal(back[name], value) for name, value in tokenizer_state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_there_and_back_gives_the_same_bits(kind):
    state = var_weights.state_dict(kind)
    model = transformer_from_var(state)
    back = transformer_to_var(model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())
    config = model.config
    assert (config["qk_norm"], config["shared_adaln"]) == ("cosine" in kind, "shared" in kind)
    assert (config["num_layers"], config["num_attention_heads"], config["attention_head_dim"]) == (3, 3, 64)
    assert (config["num_classes"], config["codebook_size"], config["latent_channels"]) == (10, 64, 8)
    assert config["stages"] == [1, 2, 3, 4] and config["mlp_ratio"] == 4


def test_the_geometry_of_the_tokenizer_is_inferred(tokenizer):
    config = tokenizer.config
    assert list(config["block_out_channels"]) == [32, 32, 64, 64, 128] and config["layers_per_block"] == 2
    assert (config["sample_size"], config["in_channels"], config["num_phi"]) == (64, 3, 4)
    assert (config["band_spacing"], config["stem"], config["norm_num_groups"]) == ("none", "conv", 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"stem": "patch2"}, "stem must be 'conv'"), ({"phi_index": [0, 0, 0]}, "phi_index must be the nearest ticks")],
)
def test_a_tokenizer_that_vars_code_cannot_express_is_refused(change, message):
    config = {"stem": "conv", "norm_num_groups": 32, "block_out_channels": (32, 32), "band_spacing": "none"}
    stages = (1, 2, 4) if change.get("stem") else (1, 2, 8)
    model = FrequencyVQModel(**{"sample_size": 16, "stages": stages, **config, **change})
    with pytest.raises(ValueError, match=message):
        tokenizer_to_var(model)


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if not name.endswith(names)}


def having(name: str, value: object) -> Callable[[State], State]:
    return lambda state: {**state, name: value}


def like_flexvar(state: State) -> State:
    """Without level embedding, and with positions to interpolate, as that project's code saves them."""
    return {**without("lvl_embed.weight", "lvl_1L")(state), "pos_1LC": torch.zeros(1, 192, 32, 32)}


BROKEN_TRANSFORMERS = {
    "one key": (without("blocks.1.ffn.fc2.bias"), r"missing keys: blocks\.1\.ffn\.fc2\.bias\.$"),
    "a block": (
        lambda state: {n: v for n, v in state.items() if "blocks.1." not in n},
        r"unexpected keys: blocks\.2\.",
    ),
    "many keys": (without("attn.q_bias", "attn.v_bias"), r"missing keys: blocks\.0\.attn\.q_bias.* and 1 more\.$"),
    "no stages": (without("lvl_1L"), r"missing keys: lvl_1L\.$"),
    "some scales": (without("blocks.2.attn.scale_mul_1H11"), r"missing keys: blocks\.2\.attn\.scale_mul_1H11\.$"),
    "one too many": (having("blocks.0.lora", torch.zeros(1)), r"unexpected keys: blocks\.0\.lora\.$"),
    "flexvar": (like_flexvar, r"missing keys: lvl_1L\. It looks like a transformer of FlexVAR, .* another network"),
    "a shape": (having("head.bias", torch.zeros(63)), r"do not fit: head\.bias \(63,\), expected \(64,\)"),
    "positions": (having("pos_1LC", torch.zeros(1, 29, 192)), r"pos_1LC \(1, 29, 192\), expected \(1, 30, 192\)"),
    "integers": (having("head.bias", torch.zeros(64).int()), "head.bias must be a tensor of floating-point numbers"),
    "key bias": (having("blocks.1.attn.zero_k_bias", torch.ones(192)), r"blocks\.1\.attn\.zero_k_bias must be zero"),
    "a mask": (having("attn_bias_for_masking", torch.zeros(1, 1, 30, 30)), "must let each stage see itself"),
    "no square": (having("lvl_1L", torch.tensor([[0, 1, 1]])), r"lvl_1L must hold .* got 0, 1, 1\."),
    "downwards": (having("lvl_1L", torch.tensor([[0] * 4 + [1]])), r"lvl_1L must tell the stages: .* \[2, 1\]"),
    "disorder": (having("lvl_1L", torch.tensor([[1] + [0] * 4])), r"lvl_1L must (hold|tell)"),
}


@pytest.mark.parametrize("case", BROKEN_TRANSFORMERS)
def test_what_is_wrong_with_a_transformer_is_named(case):
    change, message = BROKEN_TRANSFORMERS[case]
    with pytest.raises(InvalidInputError, match=message):
        transformer_from_var(change(var_weights.state_dict("own-cosine")))


BROKEN_TOKENIZERS = {
    "one key": (without("encoder.mid.attn_1.qkv.bias"), r"missing keys: encoder\.mid\.attn_1\.qkv\.bias\.$"),
    "a level": (
        lambda state: {name: value for name, value in state.items() if "encoder.down.4." not in name},
        r"missing keys: encoder\.down\.3\.attn.* unexpected keys: encoder\.down\.3\.downsample",
    ),
    "one too many": (having("quantize.extra", torch.zeros(1)), r"unexpected keys: quantize\.extra\.$"),
    "no stages": (
        lambda state: {name: value for name, value in state.items() if "quant_resi" not in name},
        r"missing keys: .*qresi_ls\.0\.weight\. It looks like a VQGAN without residual stages",
    ),
    "llamagen": (
        lambda state: {name.replace("encoder.down", "encoder.conv_blocks"): value for name, value in state.items()},
        r"missing keys: .* It looks like the tokenizer of LlamaGen and FlexVAR",
    ),
    "a shape": (having("quant_conv.weight", torch.zeros(8, 8, 1, 1)), r"quant_conv\.weight \(8, 8, 1, 1\), expected"),
    "no kernel": (having("encoder.conv_in.weight", torch.zeros(32)), r"conv_in\.weight must have 4 axes"),
}


@pytest.mark.parametrize("case", BROKEN_TOKENIZERS)
def test_what_is_wrong_with_a_tokenizer_is_named(case, tokenizer_state):
    change, message = BROKEN_TOKENIZERS[case]
    with pytest.raises(InvalidInputError, match=message):
        tokenizer_from_var(change(tokenizer_state), STAGES)


def test_the_two_files_in_each_others_place_are_told_apart(tokenizer_state):
    with pytest.raises(InvalidInputError, match="It looks like a transformer of VAR"):
        tokenizer_from_var(var_weights.state_dict("own-plain"), STAGES)
    with pytest.raises(InvalidInputError, match="It looks like a tokenizer of VAR"):
        transformer_from_var(tokenizer_state)


def test_fewer_stages_than_convolutions_are_refused(tokenizer_state):
    with pytest.raises(InvalidInputError, match="4 smoothing convolutions are more than the 3 stages"):
        tokenizer_from_var(tokenizer_state, (1, 2, 4))


@pytest.fixture(scope="module")
def files(tokenizer_state, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("var")
    torch.save(tokenizer_state, folder / "vae.pth")
    torch.save(var_weights.state_dict("shared-cosine"), folder / "var.pth")
    return folder / "vae.pth", folder / "var.pth"


def test_the_command(files, tokenizer_state, tmp_path, capsys):
    vae, var = files
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {index}\n" for index in range(10)), encoding="utf-8")
    command = ["convert", "var", "--vae", str(vae), "--transformer", str(var), "--out", str(tmp_path / "out")]
    assert main([*command, "--class-names", str(names)]) == 0
    said = capsys.readouterr().out
    counted = "3 blocks, 3 heads of 64, 10 classes, 4 stages, 64 px, 1,654,537 + 4,375,003 parameters"
    assert said == f"{tmp_path / 'out'}: NextFrequencyPipeline, {counted}\n"
    pipe = load_pipeline(tmp_path / "out")
    assert pipe.class_names[3] == "class 3" and pipe.scheduler.config["top_k"] == 0
    back = transformer_to_var(pipe.transformer)
    assert all(torch.equal(back[name], value) for name, value in var_weights.state_dict("shared-cosine").items())
    back = tokenizer_to_var(pipe.vqvae)
    assert all(torch.equal(back[name], value) for name, value in tokenizer_state.items())
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    names.write_text("one\ntwo\n", encoding="utf-8")
    command[-1] = str(tmp_path / "other")
    assert main([*command, "--class-names", str(names)]) == 2
    assert "class_names must be 10, one for each class, got 2" in capsys.readouterr().err
    assert main([*command, "--class-names", str(tmp_path / "no.txt")]) == 2
    assert "no.txt" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"names.txt", "out"}


def test_a_file_of_a_training_run_holds_both(tokenizer_state, tmp_path):
    state = {f"_orig_mod.{name}": value for name, value in var_weights.state_dict("own-plain").items()}
    run = {
        "trainer": {"config": {"prog_it": 0}, "var_wo_ddp": state, "vae_local": tokenizer_state},
        "args": {"tlr": 1e-4},
    }
    torch.save(run, tmp_path / "ar-ckpt-last.pth")
    pipe = convert(tmp_path / "ar-ckpt-last.pth", tmp_path / "ar-ckpt-last.pth", tmp_path / "out")
    assert pipe.class_names == [] and not pipe.transformer.config["qk_norm"]
    index = json.loads((tmp_path / "out" / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "NextFrequencyPipeline"


def test_safetensors_with_the_networks_names_in_front_and_half_precision(tokenizer_state, tmp_path):
    half = {f"vae_local.{name}": value.half() for name, value in tokenizer_state.items()}
    save_file(half, tmp_path / "vae.safetensors")
    state = {name: v.half() if v.is_floating_point() else v for name, v in var_weights.state_dict("own-plain").items()}
    save_file({f"var_wo_ddp.{name}": value for name, value in state.items()}, tmp_path / "var.safetensors")
    pipe = convert(tmp_path / "vae.safetensors", tmp_path / "var.safetensors", tmp_path / "out")
    assert pipe.transformer.head.weight.dtype == torch.float16
    assert torch.equal(pipe.vqvae.quantizer.codebook.weight, tokenizer_state["quantize.embedding.weight"].half())


def test_a_large_codebook_is_sampled_as_in_the_evaluation_of_var(tokenizer_state, tmp_path):
    wide = {**tokenizer_state, "quantize.embedding.weight": torch.ones(1000, 8)}
    state = var_weights.state_dict("own-plain")
    state |= {"head.weight": torch.ones(1000, 192), "head.bias": torch.ones(1000)}
    torch.save(wide, tmp_path / "vae.pth")
    torch.save(state, tmp_path / "var.pth")
    config = convert(tmp_path / "vae.pth", tmp_path / "var.pth", tmp_path / "out").scheduler.config
    assert (config["top_k"], config["top_p"]) == (900, 0.96)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_pickle_that_holds_code_is_not_read(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"trainer": {"var_wo_ddp": var_weights.state_dict("own-plain")}, "args": Harmful()}, tmp_path / "bad.pth"
    )
    for vae, var in ((files[0], tmp_path / "bad.pth"), (tmp_path / "bad.pth", files[1])):
        with pytest.raises(UnsafeFileError, match="plain tensors"):
            convert(vae, var, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_nothing_is_written_where_something_does_not_fit(files, tokenizer_state, tmp_path, monkeypatch):
    vae, var = files
    with pytest.raises(FileNotFoundError, match="transformer: no file"):
        convert(vae, tmp_path / "no.pth", tmp_path / "out")
    with pytest.raises(InvalidInputError, match=r"var\.pth: missing keys: .* It looks like a transformer of VAR"):
        convert(var, var, tmp_path / "out")
    torch.save({**tokenizer_state, "quantize.embedding.weight": torch.ones(65, 8)}, tmp_path / "other.pth")
    with pytest.raises(InvalidInputError, match="agree on codebook_size, got 65 and 64"):
        convert(tmp_path / "other.pth", var, tmp_path / "out")
    with pytest.raises(InvalidInputError, match="got crane more than once"):
        convert(vae, var, tmp_path / "out", ["crane"] * 2 + [str(index) for index in range(8)])

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(NextFrequencyScheduler, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        convert(vae, var, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]
