"""Rows of the table of layouts that need names of their own: LoRAs, CompVis, text encoders."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from unet_states import STRICT, nested, only, strict

from ine.errors import CheckpointError
from ine.models.loading import load_parts
from ine.weights import fit, read
from ine.weights.apply import apply_weights
from ine.weights.compvis import UNET, single_file, unet_names, unet_places, vae_names
from ine.weights.fit import check_tensors
from ine.weights.layouts import recognise
from ine.weights.lowrank import LowRank
from ine.weights.read import read_weights
from ine.weights.source import Source, open_source
from ine.weights.stack import Layer, as_unet

SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def random(shape, seed=0, scale=0.1):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noisy(module):
    state = module.state_dict()
    return {name: t + random(t.shape, n) for n, (name, t) in enumerate(state.items())}


def refusal(parts, path, *words):
    with pytest.raises(CheckpointError) as caught:
        apply_weights(parts, path)
    text = str(caught.value)
    assert text.startswith(str(path))
    for word in words:
        assert word in text, text


def self_attention(unet):
    """Modules that DUO trains."""
    return [n.removesuffix(".weight") for n in unet.state_dict() if is_projection(n, "attn1")]


def is_projection(name, which):
    return f".{which}.to_" in name and name.endswith(".weight")


def factors(weight, rank, seed, kernel=False):
    """(down, up) for a weight [out, in(, k, k)]; 1 x 1 kernels where `kernel`."""
    rest = weight.shape[2:] or ((1, 1) if kernel else ())
    down = random((rank, weight.shape[1], *rest), seed)
    return down, random((weight.shape[0], rank, *([1] * len(rest))), seed + 1)


def multiplied(down, up, like):
    """An independent up . down: the convolution of the identity."""
    if down.dim() == 4 and like.dim() == 4:
        return torch.nn.functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)
    return (up.flatten(1) @ down.flatten(1)).reshape(like.shape)


# LoRAs.

SPELLINGS = {
    "DUO": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
    "no prefix": ("{}.lora.down.weight", "{}.lora.up.weight"),
    "PEFT": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
    "PEFT, named": ("unet.{}.lora_A.default.weight", "unet.{}.lora_B.default.weight"),
    "PEFT, raw": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loras_of_diffusers_and_peft(tiny_parts, tmp_path, spelling, dtype):
    base, file, wanted = tiny_parts.unet.state_dict(), {}, {}
    for n, module in enumerate(self_attention(tiny_parts.unet)):
        down, up = (t.to(dtype) for t in factors(base[f"{module}.weight"], 3, 2 * n))
        file |= {k.format(module): t for k, t in zip(SPELLINGS[spelling], (down, up), strict=True)}
        wanted[f"{module}.weight"] = base[f"{module}.weight"] + up.float() @ down.float()
    save_file(file, tmp_path / "x.safetensors")
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    assert weights.layout == "diffusers or PEFT LoRA"
    assert weights.method == "DUO"
    assert (weights.replaced, weights.added, weights.changed) == (0, len(wanted), len(wanted))
    assert f"adds to {len(wanted)} of {len(base)} UNet tensors" in weights.describe()
    for name, tensor in parts.unet.state_dict().items():
        torch.testing.assert_close(tensor, wanted.get(name, base[name]), atol=1e-6, rtol=1e-6)
        assert name in wanted or torch.equal(tensor, base[name])


def test_names_of_the_attention_processors_of_2023(tiny_parts, tmp_path):
    base = tiny_parts.unet.state_dict()
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    file = {}
    for leaf in ("to_q", "to_out"):
        weight = base[f"{path}.{'to_out.0' if leaf == 'to_out' else leaf}.weight"]
        down, up = factors(weight, 2, 5)
        file |= {
            f"{path}.processor.{leaf}_lora.down.weight": down,
            f"{path}.processor.{leaf}_lora.up.weight": up,
        }
    torch.save(file, tmp_path / "x.bin")
    _, weights = apply_weights(tiny_parts, tmp_path / "x.bin")
    assert set(weights.tensors) == {f"{path}.to_q.weight", f"{path}.to_out.0.weight"}


def kohya(unet, rank=1, alpha=1.0, dtype=torch.float32):
    """As SPM writes: every linear layer and convolution of the transformers."""
    file, wanted = {}, {}
    for n, (name, weight) in enumerate(unet.state_dict().items()):
        if ".attentions." not in name or weight.dim() < 2:
            continue
        down, up = (t.to(dtype) for t in factors(weight, rank, 2 * n))
        stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        file |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        file[f"{stem}.alpha"] = torch.tensor(alpha)
        wanted[name] = (alpha / rank) * multiplied(down.float(), up.float(), weight)
    return file, wanted


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (4, 1.0), (4, 4.0), (2, 0.5)])
def test_kohya_loras_with_alpha(tiny_parts, tmp_path, rank, alpha):
    file, wanted = kohya(tiny_parts.unet, rank, alpha)
    save_file(file, tmp_path / "x.safetensors", {"prompts": "fire", "rank": str(rank)})
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    assert weights.layout == "kohya LoRA"
    assert weights.method == ("SPM" if rank == 1 else "LoRA")
    assert weights.metadata["prompts"] == "fire"
    base = tiny_parts.unet.state_dict()
    for name, tensor in parts.unet.state_dict().items():
        if name in wanted:
            torch.testing.assert_close(tensor - base[name], wanted[name], atol=1e-6, rtol=1e-4)
        else:
            assert torch.equal(tensor, base[name])


def test_an_integer_alpha(tiny_parts, tmp_path):
    file, _ = kohya(tiny_parts.unet, 2)
    save_file(
        {k: torch.tensor(4) if k.endswith("alpha") else t for k, t in file.items()},
        tmp_path / "x.safetensors",
    )
    values = read_weights(tmp_path / "x.safetensors").tensors.values()
    assert {value.scale for value in values} == {2.0}


def test_kohya_names_of_compvis_blocks(tiny_parts, tmp_path):
    """SDXL trainers write `lora_unet_input_blocks_...`."""
    file, _ = kohya(tiny_parts.unet)
    diffusers = {
        new.removesuffix(".weight").replace(".", "_"): old.removesuffix(".weight").replace(".", "_")
        for old, new in unet_names(tiny_parts.unet).items()
    }
    other = {}
    for key, tensor in file.items():
        stem, dot, leaf = key.removeprefix("lora_unet_").partition(".")
        other["lora_unet_" + diffusers[stem] + dot + leaf] = tensor
    assert not set(other) & set(file)
    applied = []
    for name, found in (("a", file), ("b", other)):
        save_file(found, tmp_path / f"{name}.safetensors")
        applied.append(
            apply_weights(tiny_parts, tmp_path / f"{name}.safetensors")[0].unet.state_dict()
        )
    assert all(torch.equal(applied[0][name], applied[1][name]) for name in applied[0])


@pytest.mark.parametrize("te", ["lora_te_text_model_", "lora_te1_text_model_", "lora_te_"])
def test_kohya_parts_of_the_text_encoder(tiny_parts, tmp_path, te):
    stem = f"{te}encoder_layers_0_self_attn_q_proj"
    down, up = random((2, 32), 1), random((32, 2), 2)
    save_file(
        {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, tmp_path / "x.safetensors"
    )
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    assert (weights.changed, weights.encoder_changed) == (0, 1)
    before, after = (p.text_encoders[0].state_dict() for p in (tiny_parts, parts))
    [name] = [n for n in after if not torch.equal(after[n], before[n])]
    assert name.endswith("layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(after[name] - before[name], up @ down, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("leaf", ["lora", "lora_linear_layer"])
def test_a_diffusers_lora_of_the_text_encoder(tiny_parts, tmp_path, leaf):
    stem = f"text_encoder.text_model.encoder.layers.1.self_attn.k_proj.{leaf}"
    save_file(
        {f"{stem}.down.weight": random((2, 32), 1), f"{stem}.up.weight": random((32, 2), 2)},
        tmp_path / "x.safetensors",
    )
    assert apply_weights(tiny_parts, tmp_path / "x.safetensors")[1].encoder_changed == 1


@pytest.mark.parametrize("tucker", [False, True])
def test_lora_of_a_convolution(tiny_parts, tmp_path, tucker):
    name = "down_blocks.0.resnets.0.conv1"
    weight = tiny_parts.unet.state_dict()[f"{name}.weight"]
    x = random((2, weight.shape[1], 6, 6), 9)
    conv = torch.nn.functional.conv2d
    stem = "lora_unet_" + name.replace(".", "_")
    if tucker:
        down, mid = random((3, weight.shape[1], 1, 1), 1), random((3, 3, 3, 3), 2)
        file = {f"{stem}.lora_mid.weight": mid}
    else:
        down, file = random((3, weight.shape[1], 3, 3), 1), {}
    up = random((weight.shape[0], 3, 1, 1), 3)
    file |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    save_file(file, tmp_path / "x.safetensors")
    parts, _ = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    # The adapter as it runs beside the layer, without being merged.
    h = conv(conv(x, down), mid, padding=1) if tucker else conv(x, down, padding=1)
    wanted = conv(x, weight, padding=1) + conv(h, up)
    torch.testing.assert_close(
        conv(x, parts.unet.state_dict()[f"{name}.weight"], padding=1), wanted, atol=1e-5, rtol=1e-4
    )


def test_a_linear_lora_on_a_kernel_of_one(tiny_parts, tmp_path):
    name = "down_blocks.0.attentions.0.proj_in.weight"
    weight = tiny_parts.unet.state_dict()[name]
    assert weight.dim() == 4
    down, up = random((2, weight.shape[1]), 1), random((weight.shape[0], 2), 2)
    stem = name.removesuffix(".weight")
    file = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(file, tmp_path / "x.safetensors")
    applied = apply_weights(tiny_parts, tmp_path / "x.safetensors")[0].unet.state_dict()[name]
    torch.testing.assert_close(
        applied - weight, (up @ down)[:, :, None, None], atol=1e-6, rtol=1e-4
    )


def test_merging_is_in_float32_and_rounds_once(tiny_parts, tmp_path):
    half = tiny_parts.with_unet(copy.deepcopy(tiny_parts.unet).bfloat16(), "half")
    file, _ = kohya(tiny_parts.unet, 4, 2.0, torch.bfloat16)
    save_file(file, tmp_path / "x.safetensors")
    parts, weights = apply_weights(half, tmp_path / "x.safetensors")
    base, applied = half.unet.state_dict(), parts.unet.state_dict()
    for name, value in weights.tensors.items():
        exact = base[name].float() + value.difference(base[name].shape)
        assert torch.equal(applied[name], exact.bfloat16())


def duo_file(unet, rank=4):
    base, file = unet.state_dict(), {}
    for n, module in enumerate(self_attention(unet)):
        down, up = factors(base[f"{module}.weight"], rank, 2 * n)
        file |= {f"unet.{module}.lora.down.weight": down, f"unet.{module}.lora.up.weight": up}
    return file


def test_folders_of_loras(tiny_parts, tmp_path):
    file = duo_file(tiny_parts.unet)
    (tmp_path / "duo").mkdir()
    save_file(file, tmp_path / "duo" / "pytorch_lora_weights.safetensors")
    applied = apply_weights(tiny_parts, tmp_path / "duo")[1]
    assert applied.layout == "diffusers or PEFT LoRA (LoRA folder)"
    (tmp_path / "peft").mkdir()
    renamed = {
        k.replace("unet.", "base_model.model.")
        .replace("lora.down", "lora_A")
        .replace("lora.up", "lora_B"): t
        for k, t in file.items()
    }
    save_file(renamed, tmp_path / "peft" / "adapter_model.safetensors")
    for settings, scale in (
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 2, "to_k": 2, "to_v": 2, "to_out.0": 2}}, 0.5),
    ):
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(settings))
        weights = apply_weights(tiny_parts, tmp_path / "peft")[1]
        assert {v.scale for v in weights.tensors.values()} == {scale}
    assert weights.tensors.keys() == applied.tensors.keys()
    for settings in (
        '{"use_dora": true}',
        '{"alpha_pattern": [1]}',
        f'{{"lora_alpha": {10**400}}}',
    ):
        (tmp_path / "peft" / "adapter_config.json").write_text(settings)
        refusal(tiny_parts, tmp_path / "peft", "not those of a plain LoRA")


def test_the_adapter_settings_that_diffusers_writes_into_the_header(tiny_parts, tmp_path):
    note = json.dumps({"unet.lora_alpha": 2, "unet.r": 4})
    save_file(
        duo_file(tiny_parts.unet), tmp_path / "x.safetensors", {"lora_adapter_metadata": note}
    )
    weights = read_weights(tmp_path / "x.safetensors")
    assert {v.scale for v in weights.tensors.values()} == {0.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop(next(k for k in f if ".up." in k)), "lacks its 'up' half"),
        (lambda f: f.update({"unet.mid_block.x.alpha": torch.ones(())}), "no weights for"),
        (lambda f: f.update({k: t[:2] for k, t in f.items() if ".down." in k}), "do not multiply"),
        (lambda f: f.update({"unet.mid_block.x.dora_scale": torch.ones(2)}), "DoRA"),
        (lambda f: f.update({"unet.mid_block.x.hada_w1_a": torch.ones(2)}), "LoHa"),
        (lambda f: f.update({k: t.to(torch.int8) for k, t in f.items()}), "torch.int8"),
        (lambda f: next(iter(f.values())).fill_(torch.nan), "NaN or infinite"),
        (
            lambda f: f.update(
                {f"unet.nowhere.lora.{n}.weight": torch.ones(2, 2) for n in ("down", "up")}
            ),
            "1 of",
        ),
        (
            lambda f: f.update({k: torch.ones(4, 7) for k in f if ".down." in k}),
            "have another shape",
        ),
    ],
)
def test_loras_that_cannot_be_applied(tiny_parts, tmp_path, change, words):
    file = duo_file(tiny_parts.unet)
    change(file)
    save_file(file, tmp_path / "x.safetensors")
    refusal(tiny_parts, tmp_path / "x.safetensors", words)


def test_a_lora_of_another_family(tiny_parts, tmp_path):
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    stem = "lora_unet_" + path.replace(".", "_")
    for names in (
        (f"unet.{path}.lora.down.weight", f"unet.{path}.lora.up.weight"),
        (f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"),
    ):
        save_file(
            {names[0]: torch.ones(2, 768), names[1]: torch.ones(32, 2)}, tmp_path / "x.safetensors"
        )
        refusal(tiny_parts, tmp_path / "x.safetensors", "made for sd1 (cross-attention width 768)")


def test_a_receler_adapter_says_why_not(tiny_parts, tmp_path):
    block = {"down.weight": torch.ones(4, 8), "up.weight": torch.ones(8, 4)}
    torch.save({"down_blocks.0.attentions.0.transformer_blocks.0": block}, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "Receler", "cannot be merged")


# CompVis.


def as_compvis(unet, state, prefix=UNET):
    names = {new: old for old, new in unet_names(unet).items()}
    return {prefix + names[name]: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", [UNET, "diffusion_model.", ""])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 1}])
@pytest.mark.parametrize("which", ["all", "attn2", "strict", "conv_out"])
def test_compvis_full_and_partial(tiny_parts, tmp_path, prefix, wrap, which):
    test = {
        "all": lambda n: True,
        "attn2": lambda n: ".attn2." in n,
        "strict": lambda n: n.endswith(STRICT),
        "conv_out": lambda n: n.startswith(("conv_out", "up_blocks.1.resnets.0.time_emb")),
    }[which]
    state = {n: t for n, t in noisy(tiny_parts.unet).items() if test(n)}
    torch.save(wrap(as_compvis(tiny_parts.unet, state, prefix)), tmp_path / "x.ckpt")
    if which == "conv_out" and not prefix:
        state_names = set(as_compvis(tiny_parts.unet, state, ""))
        assert any(n.startswith("output_blocks.") for n in state_names)
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.ckpt")
    assert "CompVis checkpoint" in weights.layout
    assert weights.layout.startswith("full" if which == "all" else "partial")
    assert weights.replaced == weights.changed == len(state)
    base, applied = tiny_parts.unet.state_dict(), parts.unet.state_dict()
    assert all(torch.equal(applied[n], state.get(n, base[n])) for n in base)


def test_the_other_parts_of_a_compvis_checkpoint(tiny_parts, tmp_path):
    encoder = tiny_parts.text_encoders[0].state_dict()
    stem = "cond_stage_model.transformer.text_model."
    file = as_compvis(tiny_parts.unet, noisy(tiny_parts.unet))
    file |= {stem + n.removeprefix("text_model."): t for n, t in encoder.items()}
    file |= {
        f"{stem}embeddings.position_ids": torch.arange(77)[None],
        "first_stage_model.encoder.conv_in.weight": torch.ones(2),
        "model_ema.decay": torch.tensor(0.9),
        "betas": torch.ones(1000),
        "model_ema.num_updates": torch.tensor(3),
    }
    save_file(file, tmp_path / "x.safetensors")
    weights = apply_weights(tiny_parts, tmp_path / "x.safetensors")[1]
    assert (weights.encoder_changed, weights.changed) == (0, weights.total)
    key = next(k for k in file if k.endswith("layers.0.mlp.fc1.weight"))
    save_file(file | {key: file[key] + 1}, tmp_path / "x.safetensors")
    assert apply_weights(tiny_parts, tmp_path / "x.safetensors")[1].encoder_changed == 1


def test_an_open_clip_encoder_of_another_model(tiny_parts, tmp_path):
    file = as_compvis(tiny_parts.unet, noisy(tiny_parts.unet))
    stem = "cond_stage_model.model."
    for name, tensor, words in (
        ("ln_final.weight", torch.ones(2), "final_layer_norm.weight is (2,)"),
        ("transformer.resblocks.0.attn.in_proj_bias", torch.ones(95), "v_proj.bias is (31,)"),
        ("visual.proj", torch.ones(2), "visual.proj"),
    ):
        save_file(file | {stem + name: tensor}, tmp_path / "x.safetensors")
        refusal(tiny_parts, tmp_path / "x.safetensors", words)


def test_compvis_keys_of_another_model(tiny_parts, tmp_path):
    file = as_compvis(tiny_parts.unet, noisy(tiny_parts.unet))
    extra = f"{UNET}input_blocks.11.0.in_layers.0.weight"
    save_file(file | {extra: torch.ones(4)}, tmp_path / "x.safetensors")
    refusal(tiny_parts, tmp_path / "x.safetensors", "1 of", extra)


def meta_unet(config):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@pytest.fixture(scope="module")
def sd15():
    """The UNet of SD 1.5 without memory for its weights."""
    return meta_unet(SD15)


def test_the_compvis_names_are_those_of_the_converter(sd15):
    """diffusers' converter agrees on whole checkpoints, of SD 1.5 and of SDXL."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    for unet, tensors in ((sd15, 686), (meta_unet(SDXL), 1680)):
        names = unet_names(unet)
        assert sorted(names.values()) == sorted(unet.state_dict())
        assert len(names) == tensors
        # Each tensor carries the name that it should come back under.
        file = {UNET + old: new for old, new in names.items()}
        file = {k: SimpleNamespace(name=new) for k, new in file.items()}
        made = convert_ldm_unet_checkpoint(file, dict(unet.config))
        assert {k: v.name for k, v in made.items()} == {n: n for n in unet.state_dict()}


def test_the_converter_loses_tensors_of_partial_files_and_the_map_does_not(sd15):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    part = [n for n in sd15.state_dict() if ".attn2.to_" in n]
    assert len(part) == 80
    file = as_compvis(sd15, dict.fromkeys(part, torch.ones(1)))
    assert len(convert_ldm_unet_checkpoint(dict(file), dict(sd15.config))) < 80
    names = unet_names(sd15)
    assert sorted(names[key.removeprefix(UNET)] for key in file) == sorted(part)


def test_well_known_compvis_names(sd15):
    names = unet_names(sd15)
    for old, new in {
        "time_embed.0.bias": "time_embedding.linear_1.bias",
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        ),
        "middle_block.1.proj_in.weight": "mid_block.attentions.0.proj_in.weight",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "output_blocks.11.0.out_layers.3.bias": "up_blocks.3.resnets.2.conv2.bias",
        "out.2.weight": "conv_out.weight",
    }.items():
        assert names[old] == new
    assert len(set(unet_places(sd15.config).values())) > 40


def test_vae_names_are_those_of_the_converter(tiny_parts):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = tiny_parts.vae
    file = single_file(tiny_parts)
    made = convert_ldm_vae_checkpoint(dict(file), dict(vae.config))
    state = vae.state_dict()
    assert made.keys() == state.keys() == set(vae_names(vae).values())
    assert all(torch.equal(made[n].reshape(state[n].shape), state[n]) for n in state)


def test_a_single_file_reads_back(tiny_parts, tmp_path):
    state = noisy(tiny_parts.unet)
    save_file(state, tmp_path / "x.safetensors")
    applied, _ = apply_weights(tiny_parts, tmp_path / "x.safetensors")
    torch.save(single_file(applied), tmp_path / "single.ckpt")
    again, weights = apply_weights(tiny_parts, tmp_path / "single.ckpt")
    assert weights.layout == "full CompVis checkpoint"
    back = again.unet.state_dict()
    assert all(torch.equal(back[n], state[n]) for n in state)


# Text encoders.


def wrapped(encoder):
    """As AdvUnlearn saves: the encoder inside a module that has its parts once more."""
    bare = {n.removeprefix("text_model."): t for n, t in encoder.items()}
    alias = {n.replace("embeddings.", "embedding.", 1): t for n, t in bare.items()}
    return {f"text_encoder.text_model.{n}": t for n, t in bare.items()} | alias


def old_names(encoder):
    return {f"text_model.{n.removeprefix('text_model.')}": t for n, t in encoder.items()}


ENCODERS = {
    "AdvUnlearn": wrapped,
    "AdvUnlearn, parallel": lambda s: {f"module.{k}": t for k, t in wrapped(s).items()},
    "old names": old_names,
    "own names": dict,
    "position ids": lambda s: {
        **old_names(s),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    },
    "projection": lambda s: {**old_names(s), "text_projection.weight": torch.ones(2, 2)},
    "under a key": lambda s: {"text_encoder": old_names(s)},
    "state_dict": lambda s: {"state_dict": wrapped(s)},
    "CompVis": lambda s: {f"cond_stage_model.transformer.{k}": t for k, t in old_names(s).items()},
}


@pytest.mark.parametrize("spelling", ENCODERS)
def test_text_encoders(tiny_parts, tmp_path, spelling):
    encoder = noisy(tiny_parts.text_encoders[0])
    torch.save(ENCODERS[spelling](encoder), tmp_path / "x.pt")
    assert "AdvUnlearn" in read_weights(tmp_path / "x.pt").method
    parts, weights = apply_weights(tiny_parts, tmp_path / "x.pt")
    assert weights.layout.startswith(("text encoder", "key 'text_encoder'"))
    assert "AdvUnlearn" in weights.method
    assert (weights.replaced, weights.changed) == (0, 0)
    assert weights.encoder_changed == len(encoder)
    assert "leaves the UNet as it is" in weights.describe()
    applied = parts.text_encoders[0].state_dict()
    assert all(torch.equal(applied[n], encoder[n]) for n in encoder)
    base = tiny_parts.unet.state_dict()
    assert all(torch.equal(t, base[n]) for n, t in parts.unet.state_dict().items())


def test_a_text_encoder_folder(tiny_parts, tmp_path):
    encoder = copy.deepcopy(tiny_parts.text_encoders[0])
    encoder.load_state_dict(noisy(encoder))
    encoder.save_pretrained(tmp_path / "encoder")
    _, weights = apply_weights(tiny_parts, tmp_path / "encoder")
    assert weights.encoder_changed == len(encoder.state_dict())


def test_text_encoders_that_do_not_fit(tiny_parts, tmp_path):
    encoder = wrapped(tiny_parts.text_encoders[0].state_dict())
    torch.save(encoder | {"text_encoder.extra": torch.ones(1)}, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "unknown to the base's text_encoder", "extra")
    wide = {"text_model.final_layer_norm.weight": torch.ones(1280)}
    torch.save(wide, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "weights of text_encoder_2", "does not have")
    torch.save({"text_model.final_layer_norm.weight": torch.ones(768)}, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "another shape", "(768,)", "(32,)")


@pytest.mark.parametrize("file", [{"text_encoder": {}}, {"model_ema.diffusion_model.x": {}}])
def test_files_of_nothing(tiny_parts, tmp_path, file):
    torch.save(file, tmp_path / "x.pt")
    refusal(tiny_parts, tmp_path / "x.pt", "")


def test_a_text_encoder_that_equals_the_base(tiny_parts, tmp_path, caplog):
    torch.save(wrapped(tiny_parts.text_encoders[0].state_dict()), tmp_path / "x.pt")
    assert apply_weights(tiny_parts, tmp_path / "x.pt")[1].is_base
    assert "nothing was unlearned" in caplog.text


# True sizes: every name and shape of SD 1.5, without its 3.4 GB.


@pytest.fixture
def as_file(monkeypatch):
    """Entries as if a file held them; the formats of files are tested at tiny size."""

    def give(entries):
        source = Source(path=Path("x"), entries=entries)
        monkeypatch.setattr(read, "open_source", lambda path: source)
        return source

    return give


def fake(tensors, dtype=torch.float32):
    """Tensors of these shapes that all share one number; no file may hold such."""
    return {n: torch.ones((), dtype=dtype).expand(t.shape) for n, t in tensors.items()}


def linear_or_conv(name):
    return "norm" not in name


TRUE = {
    "ESD old": (686, "full fine-tuning", torch.float32, lambda s: s),
    "ESD-x": (80, "ESD-x", torch.bfloat16, lambda s: only(s, lambda n: ".attn2." in n)),
    "ESD-x-strict": (32, "ESD-x-strict", torch.bfloat16, lambda s: strict(s)),
    "UCE": (32, "UCE, RECE or Concept Ablation", torch.float32, lambda s: strict(s)),
    "ESD-u": (
        388,
        "ESD-u",
        torch.bfloat16,
        lambda s: only(s, lambda n: linear_or_conv(n) and ".attn2." not in n),
    ),
    "ESD-all": (468, "ESD-all", torch.bfloat16, lambda s: only(s, linear_or_conv)),
    "alt-ESD": (
        80,
        "ESD-x",
        torch.float32,
        lambda s: nested(only(s, lambda n: ".attn2." in n)),
    ),
    "Concept Ablation": (
        32,
        "UCE, RECE or Concept Ablation",
        torch.float32,
        lambda s: {"unet": strict(s)},
    ),
    "wrapped": (
        686,
        "full fine-tuning",
        torch.float16,
        lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}},
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_unet_layouts_at_true_size(sd15, as_file, name):
    count, method, dtype, wrap = TRUE[name]
    source = as_file(wrap(fake(sd15.state_dict(), dtype)))
    weights = read_weights("x")
    assert (weights.replaced, weights.method) == (count, method)
    check_tensors(sd15, weights.tensors, recognise(source)[1])


@pytest.mark.parametrize("count", [686, 80])
def test_compvis_at_true_size(sd15, as_file, count):
    state = fake(sd15.state_dict())
    part = state if count == 686 else only(state, lambda n: ".attn2.to_" in n)
    file = as_compvis(sd15, part)
    file |= {"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.ones(768)}
    _, source = recognise(as_file({"state_dict": file}))
    source = source.rename(SimpleNamespace(unet=sd15, text_encoders=()), source)
    assert source.entries.keys() == part.keys()
    check_tensors(sd15, source.entries, source)
    assert list(source.encoders) == ["text_encoder"]


def test_duo_at_true_size(sd15, as_file):
    base, file = sd15.state_dict(), {}
    for module in self_attention(sd15):
        out, width = base[f"{module}.weight"].shape
        file[f"unet.{module}.lora.down.weight"] = torch.ones(()).expand(32, width)
        file[f"unet.{module}.lora.up.weight"] = torch.ones(()).expand(out, 32)
    assert len(file) == 128
    source = as_file(file)
    weights = read_weights("x")
    assert (weights.added, weights.method) == (64, "DUO")
    check_tensors(sd15, weights.tensors, recognise(source)[1])


def test_spm_at_true_size(sd15, tmp_path):
    file = {}
    for name, weight in sd15.state_dict().items():
        if ".attentions." in name and weight.dim() > 1:
            stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            rest = weight.shape[2:]
            file[f"{stem}.lora_down.weight"] = torch.zeros(1, weight.shape[1], *rest)
            file[f"{stem}.lora_up.weight"] = torch.zeros(weight.shape[0], 1, *(1 for _ in rest))
            file[f"{stem}.alpha"] = torch.tensor(1.0)
    assert len(file) == 576
    save_file(file, tmp_path / "x.safetensors")
    assert sum(t.numel() for t in file.values()) - 192 == 423_936
    weights = read_weights(tmp_path / "x.safetensors")
    assert (weights.added, weights.method) == (192, "SPM")
    source = recognise(open_source(tmp_path / "x.safetensors"))[1]
    source = source.rename(SimpleNamespace(unet=sd15, text_encoders=()), source)
    check_tensors(sd15, source.entries, source)
    assert all(isinstance(value, LowRank) for value in source.entries.values())


def test_text_encoders_at_true_size(as_file):
    from transformers import CLIPTextConfig, CLIPTextModel

    from ine.weights.encoders import as_named_by

    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12
    )
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    state = fake(encoder.state_dict())
    assert len(state) == 196
    for file in (wrapped(state), {"unet": {"conv_in.bias": torch.ones(320)}}):
        file = file if "unet" not in file else file | {"text_encoder": old_names(state)}
        _, source = recognise(as_file(file))
        found = as_named_by(encoder, source.encoders["text_encoder"])
        assert found.keys() == state.keys()
        check_tensors(encoder, found, source)


def test_a_partial_file_is_applied_to_sd15(sd15, as_file):
    """Weights applied at true size: only what is replaced takes memory."""
    base = copy.deepcopy(sd15)
    for module in base.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(
                name, torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), False)
            )
    parts = SimpleNamespace(
        unet=base, text_encoders=(), width=768, family="sd1", name="x", prediction_type="epsilon"
    )
    parts.with_unet = lambda unet, name: SimpleNamespace(
        unet=unet, unet_name=name, with_text_encoders=lambda e: SimpleNamespace(unet=unet)
    )
    as_file(fake(strict(sd15.state_dict())))
    applied, weights = apply_weights(parts, "x")
    assert (weights.replaced, weights.changed, weights.total) == (32, 32, 686)
    state = applied.unet.state_dict()
    for name, tensor in base.state_dict().items():
        if name.endswith(STRICT):
            assert state[name].min() == state[name].max() == 1
            assert tensor.flatten()[0] == 0
        else:
            assert state[name].data_ptr() == tensor.data_ptr()


# A base that is not kept.


def full(parts):
    return noisy(parts.unet)


def cross(parts):
    return strict(noisy(parts.unet))


def low_rank(parts):
    file = {}
    for name, weight in parts.unet.state_dict().items():
        if ".attn" in name and weight.dim() == 2:
            stem = "unet." + name.removesuffix(".weight")
            file[f"{stem}.lora_A.weight"] = random((4, weight.shape[1]), 1)
            file[f"{stem}.lora_B.weight"] = random((weight.shape[0], 4), 2)
    return file


def whole(parts):
    applied = parts.with_unet(copy.deepcopy(parts.unet), "x")
    applied.unet.load_state_dict(noisy(parts.unet))
    encoder = copy.deepcopy(parts.text_encoders[0])
    encoder.load_state_dict(noisy(encoder))
    state = single_file(applied.with_text_encoders([encoder]))
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [(None,), (0.5,), (None, -0.7)])
@pytest.mark.parametrize("kind", [full, cross, low_rank, whole])
def test_a_base_that_is_not_kept_becomes_the_same_model(
    tiny_folder, tiny_parts, tmp_path, kind, weights, dtype
):
    save_file(kind(tiny_parts), tmp_path / "x.safetensors")
    save_file(
        {n: t + 1 for n, t in cross(tiny_parts).items()} if len(weights) > 1 else {},
        tmp_path / "y.safetensors",
    )
    paths = (tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    path = as_unet([Layer(*pair) for pair in zip(paths, weights, strict=False)])
    base = load_parts(tiny_folder, dtype=dtype)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in modules(base)]
    kept, one = apply_weights(base, path)
    for module, state in zip(modules(base), before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())
    made, other = apply_weights(base, path, keep_base=False)
    assert made.unet is base.unet
    assert made.text_encoders[0] is base.text_encoders[0]
    assert (one.changed, one.encoder_changed) == (other.changed, other.encoder_changed)
    assert (one.differing, made.unet_name) == (other.differing, kept.unet_name)
    for module, wanted, state in zip(modules(made), modules(kept), before, strict=True):
        wanted = wanted.state_dict()
        assert all(torch.equal(t, wanted[n]) for n, t in module.state_dict().items())
        moved = [n for n in state if not torch.equal(wanted[n], state[n])]
        assert moved or (module is not made.unet and kind is not whole)


def modules(parts):
    return (parts.unet, *parts.text_encoders)


def test_comparing_piece_by_piece_is_comparing(monkeypatch):
    """Whatever the size of a piece, and wherever the one value lies."""
    for piece in (1, 7, 64, 10**6):
        monkeypatch.setattr(fit, "PIECE", piece)
        for shape in ((5, 3, 2), (30,), (1, 30), (0, 4), ()):
            one = random(shape)
            assert fit.same_values(one, one.clone())
            assert fit.same_values(one, one.half())
            assert fit.same_values(one.bfloat16(), one.half())
            assert fit.all_finite(one)
            if not one.numel():
                continue
            for place in {0, one.numel() // 2, one.numel() - 1}:
                other = one.clone()
                other.view(-1)[place] += 1
                assert not fit.same_values(one, other)
                other.view(-1)[place] = torch.nan
                assert not fit.all_finite(other)
                other.view(-1)[place] = 1e6
                assert fit.all_finite(other)
                assert not fit.all_finite(other, torch.float16)
