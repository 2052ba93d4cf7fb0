"""The converter, from files in the published layout made here: full geometry without memory, tiny ones with numbers."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from gendiff.cli import main
from gendiff.convert.self_forcing import build_model, convert, convert_state_dict, infer_config
from gendiff.errors import InvalidInputError, UnsafeFileError
from gendiff.models.causal_wan import CausalWanTransformer3DModel

TINY = {"dim": 256, "ffn": 24, "layers": 2, "channels": 3, "text": 12, "freq": 16}
PUBLISHED = {"dim": 1536, "ffn": 8960, "layers": 30, "channels": 16, "text": 4096, "freq": 256}


def original_shapes(dim, ffn, layers, channels, text, freq) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Wan's text-to-video transformer as its own code has them."""
    linears = {
        "text_embedding.0": (dim, text),
        "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, freq),
        "time_embedding.2": (dim, dim),
        "time_projection.1": (6 * dim, dim),
        "head.head": (4 * channels, dim),
    }
    vectors = {}
    for block in (f"blocks.{number}" for number in range(layers)):
        for attention in ("self_attn", "cross_attn"):
            linears |= {f"{block}.{attention}.{name}": (dim, dim) for name in "qkvo"}
            vectors |= {f"{block}.{attention}.norm_{name}.weight": (dim,) for name in "qk"}
        linears |= {f"{block}.ffn.0": (ffn, dim), f"{block}.ffn.2": (dim, ffn)}
        vectors |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,), f"{block}.modulation": (1, 6, dim)}
    shapes = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,), **vectors}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {**shapes, "head.modulation": (1, 2, dim)}


def original_name(name: str) -> str:
    """Of a parameter of diffusers' Wan model."""
    if not name.startswith("blocks."):
        name = {"scale_shift_table": "head.modulation"}.get(name, name)
        for ours, theirs in {
            "condition_embedder.text_embedder.linear_1": "text_embedding.0",
            "condition_embedder.text_embedder.linear_2": "text_embedding.2",
            "condition_embedder.time_embedder.linear_1": "time_embedding.0",
            "condition_embedder.time_embedder.linear_2": "time_embedding.2",
            "condition_embedder.time_proj": "time_projection.1",
            "proj_out": "head.head",
        }.items():
            name = name.replace(ours, theirs)
        return name
    for ours, theirs in {
        "scale_shift_table": "modulation",
        "norm2": "norm3",
        "attn1": "self_attn",
        "attn2": "cross_attn",
        "to_out.0": "o",
        ".to_": ".",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    }.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(scope="module")
def theirs() -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        num_attention_heads=2,
        in_channels=3,
        out_channels=3,
        text_dim=12,
        freq_dim=16,
        ffn_dim=24,
        num_layers=2,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def original(theirs) -> dict[str, torch.Tensor]:
    return {original_name(name): value.clone() for name, value in theirs.state_dict().items()}


def in_layout(layout: str, original: dict[str, torch.Tensor], folder: Path) -> tuple[Path, str]:
    """A file of one of the published layouts, and the key of the network in it."""
    other = {f"model.{name}": torch.zeros_like(value) for name, value in original.items()}
    path = folder / ("file.safetensors" if "safetensors" in layout else "file.pt")
    if layout == "ema":
        # A mean of sharded weights, beside the last weights and the critic.
        shards = {f"model._fsdp_wrapped_module.{name}": value for name, value in original.items()}
        wrapped = {name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): v for name, v in shards.items()}
        torch.save({"generator": other, "critic": other, "generator_ema": wrapped, "step": 600}, path)
    elif layout == "generator":
        torch.save({"generator": {f"model.{name}": value for name, value in original.items()}}, path)
        return path, "generator"
    elif layout == "old torch":
        torch.save({"generator_ema": original}, path, _use_new_zipfile_serialization=False)
    elif layout == "safetensors":
        save_file({f"model.{name}": value for name, value in original.items()}, path)
    else:
        both = {f"generator.{name}": value for name, value in other.items()}
        save_file(both | {f"generator_ema.model.{name}": value for name, value in original.items()}, path)
    return path, "generator_ema"


LAYOUTS = ["ema", "generator", "old torch", "safetensors", "two networks in safetensors"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_converted_file_computes_what_the_original_computes(layout, theirs, original, tmp_path):
    path, key = in_layout(layout, original, tmp_path)
    convert(path, tmp_path / "out", key)
    names = [file.name for file in sorted((tmp_path / "out").iterdir())]
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
    # The mask of diffusers' model: all frames see all.
    model = CausalWanTransformer3DModel.from_pretrained(tmp_path / "out", attention_mode="full")
    g = torch.Generator().manual_seed(1)
    video, text = torch.randn(2, 3, 3, 4, 6, generator=g), torch.randn(2, 5, 12, generator=g)
    times = torch.tensor([750.0, 20.0])
    with torch.no_grad():
        expected = theirs(video, times, text).sample
        torch.testing.assert_close(model(video, times, text).sample, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.05


def test_the_published_geometry_is_covered_both_ways():
    shapes = original_shapes(**PUBLISHED)
    with torch.device("meta"):
        state = {f"model.{name}": torch.empty(shape) for name, shape in shapes.items()}
        theirs = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    converted = convert_state_dict(state)
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.items()} == expected
    model = build_model(converted)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert {original_name(name) for name in expected} == set(shapes)
    assert model.num_parameters() == 1_418_996_800
    config = model.config
    assert config["num_layers"] == 30 and config["num_attention_heads"] == 12 and config["attention_head_dim"] == 128
    assert config["ffn_dim"] == 8960 and config["cross_attention_dim"] == 4096 and config["freq_dim"] == 256
    assert model.sites == 1560 and config["chunk_size"] == 3 and config["attention_mode"] == "block_causal"


def test_the_bare_geometry_is_inferred(original):
    assert {name: tuple(value.shape) for name, value in original.items()} == original_shapes(**TINY)
    assert infer_config(convert_state_dict(original)) == {
        "in_channels": 3,
        "patch_size": (1, 2, 2),
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "ffn_dim": 24,
        "freq_dim": 16,
        "cross_attention_dim": 12,
    }


def test_the_dtype_is_kept(original, tmp_path):
    torch.save({"generator_ema": {name: value.bfloat16() for name, value in original.items()}}, tmp_path / "file.pt")
    convert(tmp_path / "file.pt", tmp_path / "out")
    model = CausalWanTransformer3DModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert torch.equal(model.proj_out.weight, original["head.head.weight"].bfloat16())


def test_the_command(original, tmp_path, capsys):
    path, key = in_layout("generator", original, tmp_path)
    out = tmp_path / "models" / "out"
    assert main(["convert", "self-forcing", str(path), str(out), "--key", key, "--chunk-size", "1"]) == 0
    count = sum(value.numel() for value in original.values())
    expected = f"{out}: CausalWanTransformer3DModel, 2 blocks, 2 heads of 128, {count:,} parameters"
    assert capsys.readouterr().out.strip() == expected
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["chunk_size"] == 1 and config["context_frames"] == 20
    assert main(["convert", "self-forcing", str(path), str(out), "--key", key]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", "self-forcing", str(path), str(tmp_path / "other")]) == 2
    assert "no key 'generator_ema'; it has generator" in capsys.readouterr().err
    assert main(["convert", "self-forcing", str(tmp_path / "no.pt"), str(tmp_path / "other")]) == 2
    assert "no file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_value(name, value):
    return lambda state: {**state, name: value}


BROKEN = {
    "missing": (without("blocks.1.ffn.2.bias"), r"missing keys .*: blocks\.1\.ffn\.net\.2\.bias\.$"),
    "no first layer": (without("patch_embedding.weight"), r"missing key .*: patch_embedding\.weight"),
    "a gap": (with_value("blocks.9.modulation", torch.zeros(1, 6, 256)), "missing keys .* and [0-9]+ more"),
    "a shape": (
        with_value("blocks.0.self_attn.q.weight", torch.zeros(256, 255)),
        r"do not fit: blocks\.0\.attn1\.to_q\.weight \(256, 255\), expected \(256, 256\)",
    ),
    "no heads": (with_value("patch_embedding.weight", torch.zeros(100, 3, 1, 2, 2)), "multiple of 128"),
    "two frames": (with_value("patch_embedding.weight", torch.zeros(256, 3, 2, 2, 2)), "one frame at a time"),
    "no kernel": (with_value("patch_embedding.weight", torch.zeros(256, 3)), "must have 5 dimensions"),
    "unknown": (with_value("blocks.0.lora.weight", torch.zeros(3)), r"unexpected keys: blocks\.0\.lora\.weight\.$"),
    "no such bias": (with_value("blocks.0.self_attn.norm_q.bias", torch.zeros(256)), "unexpected keys .*norm_q.bias"),
    "image model": (with_value("img_emb.proj.0.weight", torch.zeros(3)), "only text-to-video"),
    "twice": (with_value("model.head.head.bias", torch.zeros(12)), "another name has given already"),
    "integers": (with_value("head.head.bias", torch.zeros(12).int()), "head.head.bias must be a tensor of floating"),
    "no tensor": (with_value("head.head.bias", [1.0]), "floating-point numbers, got list"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_the_weights_is_named_and_nothing_is_written(case, original, tmp_path):
    change, message = BROKEN[case]
    torch.save({"generator_ema": change(original)}, tmp_path / "file.pt")
    with pytest.raises(InvalidInputError, match=message) as caught:
        convert(tmp_path / "file.pt", tmp_path / "out")
    assert str(tmp_path / "file.pt") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_file_that_needs_code_is_not_read(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate((Harmful(), {"generator_ema": original, "when": datetime.date(2025, 1, 1)})):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        with pytest.raises(UnsafeFileError, match="plain tensors"):
            convert(path, tmp_path / "out")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("file.pt", b"", "not a whole torch file|plain tensors"),
        ("file.pt", b"PK\x03\x04 and then nothing", "not a whole torch file|plain tensors"),
        ("file.safetensors", b"\x08", "not a whole safetensors file"),
        ("file.ckpt", b"", r"expected a \.pt, \.pth or \.safetensors file, got \.ckpt"),
    ],
)
def test_files_that_are_not_whole(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InvalidInputError, UnsafeFileError), match=message):
        convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "file.pt")
    with pytest.raises(InvalidInputError, match=r"expected a dict .* got list"):
        convert(tmp_path / "file.pt", tmp_path / "out")


def test_a_destination_in_use_stays_as_it_is(original, tmp_path):
    path, key = in_layout("safetensors", original, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for destination in (tmp_path / "out", path):
        with pytest.raises(FileExistsError, match="exists already"):
            convert(path, destination, key)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    convert(path, tmp_path / "empty", key)
    assert (tmp_path / "empty" / "config.json").is_file()
