"""`ine unet show` and `ine unet export`, and --unet given more than once."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ine.cli.unet_facts import bars
from ine.weights.apply import apply_weights
from ine.weights.inspect import block_of, grouped, kind_of, square_sums
from ine.weights.read import weights_metadata

STRICT = ("attn2.to_k.weight", "attn2.to_v.weight")


def change_sizes(base, values, names, group):
    """What the command shows: {group: |W' - W| / |W|}."""
    return grouped(square_sums(base, values, names), group)


@pytest.fixture
def cross(tiny_parts, tmp_path):
    """A partial file: K and V of cross-attention, those upwards twice as far from the base."""
    state = {}
    for name, tensor in tiny_parts.unet.state_dict().items():
        if name.endswith(STRICT):
            state[name] = tensor * (1.2 if name.startswith("up") else 1.1)
    save_file(state, tmp_path / "cross.safetensors", {"ine.concept": "fire", "note": "a\x1b[31m"})
    return tmp_path / "cross.safetensors"


@pytest.fixture
def lora(tmp_path):
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    file = {
        f"unet.{path}.lora.down.weight": torch.ones(4, 32).half(),
        f"unet.{path}.lora.up.weight": torch.ones(32, 4).half(),
    }
    save_file(file, tmp_path / "duo.safetensors")
    return tmp_path / "duo.safetensors"


def test_show_without_a_base(run_ine, cross):
    result = run_ine("unet", "show", cross)
    assert result.exit_code == 0, result.output
    assert "diffusers UNet" in result.stdout
    assert "UCE, RECE or Concept Ablation (likely)" in result.stdout
    assert "8 replaced" in result.stdout or " replaced" in result.stdout
    assert "give --model" in result.stdout
    assert "really differ" not in result.stdout
    assert "fire" in result.stdout
    assert "\x1b" not in result.stdout


def test_show_against_a_base(run_ine, cross, tiny_folder, tiny_parts):
    result = run_ine("unet", "show", cross, "--model", tiny_folder)
    assert result.exit_code == 0, result.output
    count = len(load_file(cross))
    total = len(tiny_parts.unet.state_dict())
    assert f"{count} replaced, of {total}; {count} really differ" in result.stdout
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "#" not in lines["conv_in"]
    assert lines["up_blocks.0"].count("#") > lines["down_blocks.0"].count("#") > 0
    assert lines["cross-attention"].count("#") == 40


def test_show_as_json(run_ine, cross, tiny_folder, tiny_parts):
    facts = json.loads(run_ine("unet", "show", cross, "--json").stdout)
    count = len(load_file(cross))
    assert facts["tensors"]["replaced"] == count
    assert facts["tensors"]["differing"] is None
    assert facts["dtypes"] == {"float32": count}
    assert facts["metadata"]["note"] == "a\x1b[31m"
    assert (facts["family"], facts["base"], facts["change"]) == ("width-32", None, {})
    facts = json.loads(run_ine("unet", "show", cross, "--json", "--model", tiny_folder).stdout)
    assert facts["tensors"]["differing"] == count
    assert facts["family"] == tiny_parts.family
    assert set(facts["change"]) == {"block", "kind"}
    # Every changed tensor moved by a tenth or a fifth of itself, with others around it.
    assert 0 < facts["change"]["kind"]["cross-attention"] < 0.2
    assert facts["change"]["kind"]["resnets"] == 0


def test_show_a_lora(run_ine, lora, tiny_folder):
    facts = json.loads(run_ine("unet", "show", lora, "--json", "--model", tiny_folder).stdout)
    assert facts["layout"] == "diffusers or PEFT LoRA"
    assert facts["method"] == "DUO"
    assert facts["ranks"] == [4]
    assert facts["tensors"]["added"] == facts["tensors"]["differing"] == 1
    assert [k for k, v in facts["change"]["block"].items() if v] == ["mid_block"]
    assert "1 added to" in run_ine("unet", "show", lora).stdout


def test_show_a_text_encoder(run_ine, tiny_parts, tiny_folder, tmp_path):
    encoder = {n: t + 1 for n, t in tiny_parts.text_encoders[0].state_dict().items()}
    torch.save({"text_encoder": encoder}, tmp_path / "x.pt")
    shown = run_ine("unet", "show", tmp_path / "x.pt", "--model", tiny_folder).stdout
    assert f"{len(encoder)} tensors really differ" in shown
    assert "AdvUnlearn" in shown
    assert "UNet      no tensors" in shown
    assert "width-32" in run_ine("unet", "show", tmp_path / "x.pt").stdout


def test_show_uses_the_base_that_the_file_names(run_ine, cross, tiny_folder, tmp_path):
    save_file(load_file(cross), tmp_path / "a.safetensors", {"ine.base": str(tiny_folder)})
    assert "really differ" in run_ine("unet", "show", tmp_path / "a.safetensors").stdout
    save_file(load_file(cross), tmp_path / "b.safetensors", {"ine.base": "no/such-model"})
    result = run_ine("unet", "show", tmp_path / "b.safetensors")
    assert result.exit_code == 0
    assert "not on this machine" in result.stderr
    assert run_ine("unet", "show", tmp_path / "none.pt").exit_code == 5


def test_sizes_are_relative_norms(tiny_parts, cross):
    merged, weights = apply_weights(tiny_parts, cross)
    found = change_sizes(
        tiny_parts.unet, merged.unet.state_dict(), weights.differing, lambda name: name
    )
    for name, size in found.items():
        moved = 0.0
        if name.endswith(STRICT):
            moved = 0.2 if name.startswith("up") else 0.1
        assert size == pytest.approx(moved, abs=1e-5)
    whole = change_sizes(
        tiny_parts.unet, merged.unet.state_dict(), weights.differing, lambda name: "all"
    )["all"]
    a, b = (
        torch.cat([t.flatten() for t in p.unet.state_dict().values()]) for p in (tiny_parts, merged)
    )
    assert whole == pytest.approx(((b - a).norm() / a.norm()).item(), rel=1e-4)


def test_rounding_is_no_change(tiny_parts, tmp_path):
    state = {n: t.bfloat16() for n, t in tiny_parts.unet.state_dict().items()}
    state["conv_in.bias"] = state["conv_in.bias"] + 1
    save_file(state, tmp_path / "x.safetensors")
    merged, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    found = change_sizes(tiny_parts.unet, merged.unet.state_dict(), weights.differing, block_of)
    assert [block for block, size in found.items() if size] == ["conv_in"]
    everything = change_sizes(tiny_parts.unet, merged.unet.state_dict(), state, block_of)
    assert everything["mid_block"] > 0


def test_blocks_and_kinds():
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert (block_of(name), kind_of(name)) == ("down_blocks.1", "cross-attention")
    assert (block_of("conv_in.bias"), kind_of("conv_in.bias")) == ("conv_in", "other")
    assert block_of("mid_block.resnets.0.conv1.weight") == "mid_block"


def test_bars():
    lines = bars({"a": 0.0, "long": 1e-9, "b": 0.5, "c": 1.0})
    assert [line.count("#") for line in lines] == [0, 1, 20, 40]
    assert len({line.rindex("  ") for line in lines}) == 1
    assert bars({"a": 0.0})[0].count("#") == 0


def test_export_as_diffusers(run_ine, cross, lora, tiny_folder, tiny_parts, tmp_path):
    out = tmp_path / "merged.safetensors"
    args = ("unet", "export", f"{cross}:0.5", lora, "--model", tiny_folder, "--out", out)
    result = run_ine(*args, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["tensors"] == len(tiny_parts.unet.state_dict())
    unet = UNet2DConditionModel.from_config(dict(tiny_parts.unet.config))
    unet.load_state_dict(load_file(out))
    again, weights = apply_weights(tiny_parts, out)
    assert weights.layout == "full diffusers UNet"
    assert weights.changed == len(load_file(cross)) + 1
    name = next(n for n in load_file(cross) if n.startswith("up"))
    torch.testing.assert_close(
        again.unet.state_dict()[name], 1.1 * tiny_parts.unet.state_dict()[name]
    )
    metadata = weights_metadata(out)
    assert metadata["ine.concept"] == "fire"
    assert metadata["ine.unet"].startswith("cross.safetensors:0.5 + duo.safetensors")
    before = out.read_bytes()
    assert run_ine(*args).exit_code == 9
    assert run_ine(*args, "--force").exit_code == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_export_as_a_single_file(run_ine, cross, tiny_folder, tiny_parts, tmp_path, dtype):
    out = tmp_path / "single.safetensors"
    args = ("--model", tiny_folder, "--out", out, "--single-file", "--dtype", dtype)
    result = run_ine("unet", "export", cross, *args)
    assert result.exit_code == 0, result.output
    assert "UNet, VAE and text encoder under CompVis names" in result.stdout
    merged, _ = apply_weights(tiny_parts, cross)
    wanted = torch.float16 if dtype == "float16" else torch.float32
    # Judged by the loader of diffusers, from the model's own configuration.
    for kind, folder, ours in (
        (UNet2DConditionModel, "unet", merged.unet),
        (AutoencoderKL, "vae", merged.vae),
    ):
        module = kind.from_single_file(
            str(out), config=str(tiny_folder), subfolder=folder, local_files_only=True
        )
        theirs = module.state_dict()
        assert all(
            torch.equal(t.to(wanted), theirs[n].to(wanted)) for n, t in ours.state_dict().items()
        )
    keys = load_file(out)
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in keys
    assert {t.dtype for t in keys.values()} == {wanted}
    again, weights = apply_weights(tiny_parts, out)
    assert weights.layout == "full CompVis checkpoint"
    assert weights.changed == len(load_file(cross))
    assert weights.encoder_changed == 0
    assert again is not None


def test_export_says_when_a_text_encoder_is_left_behind(run_ine, tiny_parts, tiny_folder, tmp_path):
    encoder = {n: t + 1 for n, t in tiny_parts.text_encoders[0].state_dict().items()}
    torch.save({"text_encoder": encoder}, tmp_path / "x.pt")
    args = ("unet", "export", tmp_path / "x.pt", "--model", tiny_folder, "--out")
    assert "text encoder differs too" in run_ine(*args, tmp_path / "a.safetensors").stderr
    result = run_ine(*args, tmp_path / "b.safetensors", "--single-file")
    assert "text encoder differs too" not in result.stderr
    assert apply_weights(tiny_parts, tmp_path / "b.safetensors")[1].encoder_changed == len(encoder)


def test_export_refuses(run_ine, cross, tiny_folder, tmp_path):
    out = tmp_path / "merged.safetensors"
    result = run_ine("unet", "export", cross, "--out", out)
    assert result.exit_code == 4
    assert "--model" in result.stderr
    assert run_ine("unet", "export", cross, "--out", tmp_path / "x.pt").exit_code == 9
    assert run_ine("unet", "export", "--out", out).exit_code == 2
    both = ("unet", "export", cross, cross, "--model", tiny_folder, "--out", out)
    result = run_ine(*both)
    assert result.exit_code == 5
    assert "give each a weight" in result.stderr
    assert not out.exists()
    assert not list(tmp_path.glob("*.part"))


def test_generate_with_several(run_ine, cross, lora, tiny_folder, tmp_path):
    result = run_ine(
        *("generate", "--prompt", "a", "--model", tiny_folder, "--unet", f"{cross}:0.5"),
        *("--unet", f"{lora}:0.1", "--steps", "1", "--out", tmp_path / "pictures"),
    )
    assert result.exit_code == 0, result.output
    assert "Together (cross.safetensors:0.5 + duo.safetensors:0.1)" in result.stderr


def test_a_dry_inversion_with_several(run_ine, cross, lora):
    result = run_ine(
        *("invert", "--concept", "fire", "--unet", cross, "--unet", f"{lora}:2", "--dry-run")
    )
    assert result.exit_code == 0, result.output
    assert "cross.safetensors: diffusers UNet" in result.stdout
    assert "duo.safetensors: diffusers or PEFT LoRA, likely DUO" in result.stdout
