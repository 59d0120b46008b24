"""LoRAs with settings beside them: peft's and diffusers' strengths, and what cannot be applied.

The expected factors were compared with what peft 0.21.2 makes of the same files
(`PeftModel.from_pretrained(...).merge_and_unload()`): equal to the last bit.
"""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ine.errors import CheckpointError
from ine.weights.apply import apply_weights
from ine.weights.read import read_weights

ROOT = "down_blocks.0.attentions.0.transformer_blocks.0"
MODULES = [f"{ROOT}.{attn}.{leaf}" for attn in ("attn1", "attn2") for leaf in ("to_q", "to_k")]
LAYER = "encoder.layers.0.self_attn.q_proj"
FULL = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True}


def random(shape, seed):
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(modules, rank=4, prefix="base_model.model."):
    """As peft writes them; all layers here are 16 or 32 wide."""
    made = {}
    for n, (module, width) in enumerate(modules.items()):
        out, into = width
        made[f"{prefix}{module}.lora_A.weight"] = random((rank, into), 2 * n)
        made[f"{prefix}{module}.lora_B.weight"] = random((out, rank), 2 * n + 1)
    return made


def of_unet(parts):
    state = parts.unet.state_dict()
    return {module: tuple(state[f"{module}.weight"].shape) for module in MODULES}


def folder(path, entries, settings, name="adapter_model.safetensors"):
    path.mkdir(parents=True)
    if name.endswith(".bin"):
        torch.save(entries, path / name)
    else:
        save_file(entries, path / name)
    if settings is not None:
        (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def scales(path):
    values = read_weights(path).tensors
    return [values[f"{module}.weight"].scale for module in MODULES]


PATTERNS = {
    # The first that matches counts, as a name, the end of one, or a regular expression.
    "plain": ({}, [2.0] * 4),
    "rslora": ({"use_rslora": True}, [4.0] * 4),
    "ends": ({"alpha_pattern": {"to_q": 2}}, [0.5, 2.0, 0.5, 2.0]),
    "first": ({"alpha_pattern": {"to_q": 2, "attn1.to_q": 16}}, [0.5, 2.0, 0.5, 2.0]),
    "regex": ({"alpha_pattern": {r".*attn2\.to_(q|k)": 16, "to_k": 1}}, [2.0, 0.25, 4.0, 4.0]),
    "anchored": ({"alpha_pattern": {r"^down_blocks\.0\..*to_q": 12}}, [3.0, 2.0, 3.0, 2.0]),
    "no part of a name": ({"alpha_pattern": {"o_q": 2, "attn1": 2}}, [2.0] * 4),
    "rank": ({"r": 9, "rank_pattern": {"attn[12].to_.": 4}}, [2.0] * 4),
    "both": (
        {"use_rslora": True, "alpha_pattern": {"attn1.*": 2}, "rank_pattern": {"to_q": 4}},
        [1.0, 1.0, 4.0, 4.0],
    ),
    "no alpha: peft's own default": ({"lora_alpha": None}, [2.0] * 4),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_strengths_are_those_of_peft(tiny_parts, tmp_path, case):
    settings, wanted = PATTERNS[case]
    entries = tensors(of_unet(tiny_parts))
    path = folder(tmp_path / "x", entries, FULL | settings)
    assert scales(path) == wanted
    assert scales(path / "adapter_model.safetensors") == wanted
    note = json.dumps({f"unet.{name}": value for name, value in (FULL | settings).items()})
    renamed = {key.replace("base_model.model", "unet"): t for key, t in entries.items()}
    save_file(renamed, tmp_path / "y.safetensors", {"lora_adapter_metadata": note})
    assert scales(tmp_path / "y.safetensors") == wanted


def test_what_is_applied_is_the_product_at_that_strength(tiny_parts, tmp_path):
    entries = tensors(of_unet(tiny_parts))
    path = folder(tmp_path / "x", entries, FULL | {"use_rslora": True})
    applied, base = (p.unet.state_dict() for p in (apply_weights(tiny_parts, path)[0], tiny_parts))
    for module in MODULES:
        down, up = (entries[f"base_model.model.{module}.lora_{n}.weight"] for n in "AB")
        wanted = base[f"{module}.weight"] + 8 / math.sqrt(4) * up @ down
        torch.testing.assert_close(applied[f"{module}.weight"], wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.text_model."])
def test_adapters_of_text_encoders(tiny_parts, tmp_path, prefix):
    entries = tensors({LAYER: (32, 32)}, prefix=prefix)
    path = folder(tmp_path / "x", entries, FULL | {"alpha_pattern": {r".*layers\.0.*": 2}})
    for given in (path, path / "adapter_model.safetensors"):
        parts, weights = apply_weights(tiny_parts, given)
        assert (weights.changed, weights.encoder_changed) == (0, 1)
        before, after = (p.text_encoders[0].state_dict() for p in (tiny_parts, parts))
        [name] = [n for n in after if not torch.equal(after[n], before[n])]
        down, up = entries.values()
        torch.testing.assert_close(after[name] - before[name], 0.5 * up @ down, atol=1e-6, rtol=0)


def test_an_adapter_of_the_wide_encoder_is_the_second_ones(tmp_path):
    path = folder(tmp_path / "x", tensors({LAYER: (1280, 1280)}), FULL)
    assert list(read_weights(path).text_encoder) == [f"text_encoder_2.{LAYER}.weight"]


def test_folders_of_adapters_for_unet_and_text_encoder(tiny_parts, tmp_path):
    folder(tmp_path / "out" / "unet", tensors(of_unet(tiny_parts)), FULL)
    encoder = tensors({LAYER: (32, 32)}, rank=2)
    folder(tmp_path / "out" / "text_encoder", encoder, FULL | {"r": 2, "use_rslora": True})
    weights = apply_weights(tiny_parts, tmp_path / "out")[1]
    assert (weights.changed, weights.encoder_changed) == (4, 1)
    assert {value.scale for value in weights.tensors.values()} == {2.0}
    [value] = weights.text_encoder.values()
    assert value.scale == 8 / math.sqrt(2)
    assert weights.layout.endswith("folder of a UNet or text encoders")


def test_a_torch_file_of_peft_keeps_its_alpha(tiny_parts, tmp_path):
    path = folder(tmp_path / "x", tensors(of_unet(tiny_parts)), FULL, "adapter_model.bin")
    assert scales(path) == [2.0] * 4
    assert scales(path / "adapter_model.bin") == [2.0] * 4


def test_a_file_without_its_settings_is_named(tiny_parts, tmp_path, caplog):
    path = folder(tmp_path / "x", tensors(of_unet(tiny_parts)), None)
    apply_weights(tiny_parts, path / "adapter_model.safetensors")
    assert "adapter_config.json" in caplog.text
    assert "--unet FILE:2" in caplog.text
    assert read_weights(path).notes
    caplog.clear()
    (path / "adapter_config.json").write_text(json.dumps(FULL))
    apply_weights(tiny_parts, path / "adapter_model.safetensors")
    assert not caplog.text


REFUSED = {
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa_niter_16"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoftQ": {"init_lora_weights": "loftq"},
    "CorDA": {"init_lora_weights": "corda"},
    "'a_new_one'": {"init_lora_weights": "a_new_one"},
    "LoRA with a bias": {"lora_bias": True},
    "peft_type is LOHA": {"peft_type": "LOHA"},
    "lora_alpha is x": {"lora_alpha": "x"},
    "no table of numbers": {"alpha_pattern": {"to_q": "x"}},
    "state rank 8 for": {"r": 8},
    "state rank 2 for": {"rank_pattern": {"attn2.to_k": 2}},
    "regular expression": {"alpha_pattern": {"to_(q": 2}},
    # A few letters would take such an expression years.
    "may take too long": {"alpha_pattern": {"(a+)+b": 2}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_of_other_adapters_are_refused_by_name(tiny_parts, tmp_path, name):
    path = folder(tmp_path / "x", tensors(of_unet(tiny_parts)), FULL | REFUSED[name])
    for given in (path, path / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError) as caught:
            read_weights(given)
        assert name in str(caught.value)
        assert str(caught.value).startswith(str(given))


def test_harmless_initialisations_are_applied(tiny_parts, tmp_path):
    for init in (False, "gaussian", "eva", "orthogonal"):
        settings = FULL | {"init_lora_weights": init, "use_dora": False, "alpha_pattern": {}}
        path = folder(tmp_path / str(init), tensors(of_unet(tiny_parts)), settings)
        assert scales(path) == [2.0] * 4


def test_a_dora_is_refused_by_its_tensors(tiny_parts, tmp_path):
    extra = {f"base_model.model.{MODULES[0]}.lora_magnitude_vector": torch.ones(16)}
    path = folder(tmp_path / "x", tensors(of_unet(tiny_parts)) | extra, None)
    for given in (path, path / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match="DoRA"):
            read_weights(given)
