"""Whole models in one file: recognised, loaded as from a folder, refused with what to do."""

import copy
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))

from tiny import build_tiny

from ine.errors import ModelError
from ine.models import building as library
from ine.models import variants
from ine.models.clip_tokenizer import clip_tokenizer, clip_vocabulary
from ine.models.loading import load_parts
from ine.models.parts import find_model
from ine.models.single_file import load_single_file
from ine.models.variants import VARIANTS, Variant, check_known, prediction_of, variants_of
from ine.sampling import SamplerSettings, decode_latents, sample_latents
from ine.weights.apply import apply_weights
from ine.weights.compvis import ENCODERS, UNET, VAE, encoder_prefixes, single_file
from ine.weights.read import weights_metadata

FAMILIES = ["sd1", "sd2", "sdxl", "inpainting"]
X = Path("x.safetensors")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """{family: (folder, its parts, the same in one file)}."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        build_tiny(family).save_pretrained(folder / "folder")
        parts = load_parts(folder / "folder")
        save_file(contiguous(single_file(parts)), folder / "model.safetensors")
        made[family] = (folder / "folder", parts, folder / "model.safetensors")
    return made


def contiguous(state):
    return {name: tensor.contiguous() for name, tensor in state.items()}


def modules(parts):
    return (parts.unet, parts.vae, *parts.text_encoders)


def same_tensors(one, other):
    states = [[m.state_dict() for m in modules(parts)] for parts in (one, other)]
    return all(
        list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)
        for a, b in zip(*states, strict=True)
    )


@torch.no_grad()
def outputs(parts):
    """What every part computes, of any family: text states, a noise prediction, a picture."""
    states, pooled = [], None
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        ids = tokenizer(["a dog"], padding="max_length", return_tensors="pt").input_ids
        found = encoder(ids, output_hidden_states=True)
        states.append(found.hidden_states[-2])
        pooled = getattr(found, "text_embeds", None)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, parts.unet.config.in_channels, 8, 8, generator=generator)
    added = {"text_embeds": pooled, "time_ids": torch.ones(1, 6)} if pooled is not None else None
    noise = parts.unet(latents, 500, torch.cat(states, -1), added_cond_kwargs=added).sample
    return [*states, noise, parts.vae.decode(latents[:, :4]).sample]


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_the_folder_it_was_written_from(tiny, family, caplog):
    folder, parts, file = tiny[family]
    found = load_single_file(file, config=folder)
    assert same_tensors(found, parts)
    assert all(torch.equal(a, b) for a, b in zip(outputs(found), outputs(parts), strict=True))
    assert found.scheduler_config == parts.scheduler_config
    assert (found.name, found.width) == (str(file), parts.width)
    assert [t.pad_token for t in found.tokenizers] == [t.pad_token for t in parts.tokenizers]
    assert not caplog.records
    for module in modules(found):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])
        assert {type(m) for m in module.modules()} == {
            type(m)
            for other in modules(parts)
            if type(other) is type(module)
            for m in other.modules()
        }


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_it_makes_the_same_picture(tiny, family):
    folder, parts, file = tiny[family]
    pictures = []
    for one in (parts, load_single_file(file, config=folder)):
        latents = sample_latents(one, ["a dog"], [1], None, SamplerSettings(steps=3))[0]
        pictures.append(decode_latents(one, latents))
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_cast_as_they_are_placed(tiny, dtype):
    folder, parts, file = tiny["sd1"]
    found = load_single_file(file, dtype=dtype, config=folder)
    for one, other in zip(modules(found), modules(parts), strict=True):
        state, upcast = other.state_dict(), one is found.vae and dtype == torch.float16
        wanted = torch.float32 if upcast else dtype  # its configuration has force_upcast
        assert {p.dtype for p in one.parameters()} == {wanted}
        assert all(torch.equal(t, state[n].to(wanted)) for n, t in one.state_dict().items())


def test_no_weight_stays_in_the_mapped_file(tiny):
    folder, parts, file = tiny["sd1"]
    copied = file.parent / "changed.safetensors"
    copied.write_bytes(file.read_bytes())
    found = load_single_file(copied, config=folder)
    with copied.open("r+b") as handle:
        handle.seek(os.path.getsize(copied) // 4)
        handle.write(b"\xff" * (os.path.getsize(copied) // 2))
    assert same_tensors(found, parts)


def test_a_checkpoint_as_training_leaves_it(tiny, tmp_path, caplog):
    """Averages, schedules and constants are no surprise, old names of the encoder none either."""
    folder, parts, file = tiny["sd1"]
    state = load_file(file)
    old = "cond_stage_model.transformer."
    state = {n.replace(f"{old}text_model.", old): t for n, t in state.items()}
    state |= {
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(3),
        "model_ema.diffusion_modeltime_embed0weight": torch.ones(2),
        "alphas_cumprod": torch.ones(1000),
        "sqrt_recipm1_alphas_cumprod": torch.ones(1000),
        "posterior_mean_coef2": torch.ones(1000),
        "betas": torch.ones(1000),
        f"{old}text_model.embeddings.position_ids": torch.arange(77)[None],
        "first_stage_model.loss.logvar": torch.ones(()),
    }
    torch.save({"state_dict": state, "global_step": 470000, "epoch": 3}, tmp_path / "x.ckpt")
    assert same_tensors(load_single_file(tmp_path / "x.ckpt", config=folder), parts)
    assert not caplog.records


def test_surplus_tensors_are_named(tiny, tmp_path, caplog):
    folder, parts, file = tiny["sd2"]
    more = {
        f"{UNET}input_blocks.9.0.in_layers.0.weight": torch.ones(4),
        "cond_stage_model.model.visual.proj": torch.ones(4),
        "lora.something": torch.ones(4),
    }
    save_file(load_file(file) | more, tmp_path / "x.safetensors")
    assert same_tensors(load_single_file(tmp_path / "x.safetensors", config=folder), parts)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 tensors are not used" in record.message
    # OpenCLIP's last layer is in every file of SD 2.x and no surprise.
    caplog.clear()
    last = {"cond_stage_model.model.transformer.resblocks.2.ln_1.weight": torch.ones(32)}
    save_file(load_file(file) | last, tmp_path / "x.safetensors")
    load_single_file(tmp_path / "x.safetensors", config=folder)
    assert not caplog.records


def test_a_prediction_that_the_configuration_contradicts_is_named(tiny, tmp_path, caplog):
    folder, _, file = tiny["sd1"]
    save_file(load_file(file) | {"v_pred": torch.empty(0)}, tmp_path / "x.safetensors")
    found = load_single_file(tmp_path / "x.safetensors", config=folder)
    assert found.prediction_type == "epsilon"
    assert "predicts v_prediction (key v_pred)" in caplog.text


# --- what is wrong with a file ------------------------------------------------------------------


def without(*starts):
    return lambda state: {n: t for n, t in state.items() if not n.startswith(starts)}


def changed(end, change):
    return lambda state: {n: change(t) if n.endswith(end) else t for n, t in state.items()}


CUT = ".attn.in_proj_weight"


@pytest.mark.parametrize(
    ("family", "damage", "words"),
    [
        ("sd1", without(VAE), ["has no vae", "another file"]),
        ("sd1", without(*ENCODERS), ["has no text_encoder,"]),
        ("sdxl", without("conditioner.embedders.1."), ["has no text_encoder_2,"]),
        ("sd1", without(f"{UNET}out.2."), ["lacks 2 of", "its unet: conv_out."]),
        ("sd1", without(f"{VAE}quant_conv.bias"), ["lacks 1 of", "its vae: quant_conv.bias"]),
        (
            "sd2",
            without("cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"),
            ["lacks 3 of 36", "q_proj.weight", "k_proj.weight", "v_proj.weight"],
        ),
        ("sd2", changed(CUT, lambda t: t[:-1]), ["weights of its text_encoder have another shape"]),
        ("sd1", changed("time_embed.0.bias", lambda t: t[:3]), ["is (3,), expected (64,)"]),
        ("sd1", changed("time_embed.0.bias", torch.Tensor.int), ["is torch.int32", "quantised"]),
        ("sd1", changed("layer_norm1.bias", lambda t: t.to(torch.int8)), ["torch.int8"]),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tiny, tmp_path, family, damage, words):
    folder, _, file = tiny[family]
    save_file(contiguous(damage(load_file(file))), tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        load_single_file(tmp_path / "x.safetensors", config=folder)
    assert str(caught.value).startswith(str(tmp_path / "x.safetensors"))
    for word in words:
        assert word in str(caught.value)


def diffusers_unet(parts):
    return parts.unet.state_dict()


def compvis_unet(parts):
    return {n: t for n, t in single_file(parts).items() if n.startswith(UNET)}


def lora(parts):
    return {"unet.mid_block.attentions.0.proj_in.lora.down.weight": torch.ones(4, 32)} | {
        "unet.mid_block.attentions.0.proj_in.lora.up.weight": torch.ones(32, 4)
    }


def encoder(parts):
    return parts.text_encoders[0].state_dict()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (diffusers_unet, ["diffusers UNet", "no whole model", "--unet"]),
        (compvis_unet, ["a UNet under CompVis names", "no whole model", "--unet"]),
        (lora, ["diffusers or PEFT LoRA", "--unet"]),
        (encoder, ["text encoder", "--unet"]),
        (lambda parts: {"emb_params": torch.ones(2, 32)}, ["no Stable Diffusion model"]),
        (lambda parts: {"a": torch.ones(2, 2), "b": torch.ones(3)}, ["keys are like a, b"]),
        (lambda parts: {f"{VAE}a": torch.ones(2, 2)}, ["no Stable Diffusion model"]),
    ],
)
def test_what_is_no_model_says_where_it_belongs(tiny, tmp_path, state, words):
    save_file(contiguous(state(tiny["sd1"][1])), tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        load_parts(tmp_path / "x.safetensors")
    for word in words:
        assert word in str(caught.value)


class Gadget:
    def __reduce__(self):
        return (print, ("ran",))


def test_files_that_cannot_be_read(tiny, tmp_path, capsys):
    file = tiny["sd1"][2]
    bad = {
        "empty.safetensors": (b"", "is empty"),
        "cut.safetensors": (file.read_bytes()[:5000], "truncated"),
        "page.ckpt": (b"<!doctype html>", "web page"),
        "noise.ckpt": (b"\x00" * 100, "neither"),
    }
    for name, (data, word) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=word):
            load_parts(tmp_path / name)
    torch.save({"state_dict": load_file(file), "x": Gadget()}, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match="not executed"):
        load_parts(tmp_path / "x.ckpt")
    torch.save([1, 2], tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match="holds a list"):
        load_parts(tmp_path / "x.ckpt")
    assert "ran" not in capsys.readouterr().out


# --- recognition, at true size ------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_true_size():
    """{variant: {name: tensor without memory}} as published files have them."""
    made = {}
    for row in VARIANTS:
        settings = row.settings()
        names = [n for n in ("text_encoder", "text_encoder_2") if n in settings]
        parts = SimpleNamespace(
            unet=library._empty(library.UNet2DConditionModel, settings["unet"]),
            vae=library._empty(library.AutoencoderKL, settings["vae"]),
            text_encoders=tuple(library._empty_encoder(n, settings[n]) for n in names),
            prediction_type="epsilon",
            scheduler_config={},
        )
        made[row.name] = (single_file(parts), parts)
    return made


COUNTS = {
    "sd1": (686, 859_520_964, (123_060_480,)),
    "sd2": (686, 865_910_724, (340_387_840,)),
    "sd2-base": (686, 865_910_724, (340_387_840,)),
    "sdxl": (1680, 2_567_463_684, (123_060_480, 694_659_840)),
    # Five channels more into a convolution of 3 x 3 with 320 outputs.
    "sd1-inpainting": (686, 859_520_964 + 5 * 9 * 320, (123_060_480,)),
    "sd2-inpainting": (686, 865_910_724 + 5 * 9 * 320, (340_387_840,)),
    "sdxl-inpainting": (1680, 2_567_463_684 + 5 * 9 * 320, (123_060_480, 694_659_840)),
}


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_the_shipped_configurations_have_the_published_sizes(at_true_size, row):
    _, parts = at_true_size[row.name]
    tensors, parameters, encoders = COUNTS[row.name]
    assert len(parts.unet.state_dict()) == tensors
    assert size(parts.unet) == parameters
    assert tuple(map(size, parts.text_encoders)) == encoders
    assert (len(parts.vae.state_dict()), size(parts.vae)) == (248, 83_653_863)
    settings = row.settings()
    assert (settings["unet"]["cross_attention_dim"], settings["unet"]["in_channels"]) == (
        row.width,
        row.channels,
    )
    assert settings["scheduler"]["prediction_type"] == row.prediction
    pads = [settings[n]["pad_token"] for n in sorted(settings) if n.startswith("tokenizer")]
    assert pads == {768: ["<|endoftext|>"], 1024: ["!"], 2048: ["<|endoftext|>", "!"]}[row.width]
    xl = row.width == 2048
    assert settings["model_index"].get("force_zeros_for_empty_prompt", False) == xl
    assert settings["vae"]["scaling_factor"] == (0.13025 if xl else 0.18215)
    acts = [settings[n]["hidden_act"] for n in sorted(settings) if n.startswith("text_encoder")]
    assert acts == {768: ["quick_gelu"], 1024: ["gelu"], 2048: ["quick_gelu", "gelu"]}[row.width]
    # Pictures of the sizes that the models were trained on.
    side = 8 * settings["unet"]["sample_size"]
    assert side == {"sd2": 768}.get(row.name, 1024 if xl else 512)


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_true_files_are_recognised_by_names_and_shapes(at_true_size, row):
    entries, parts = at_true_size[row.name]
    check_known(X, entries)
    rows = variants_of(X, entries)
    assert row in rows
    assert {r.name.split("-")[0] for r in rows} == {row.name.split("-")[0]}
    assert len(rows) == (2 if row.name in ("sd2", "sd2-base") else 1)
    prefixes = encoder_prefixes(parts.text_encoders)
    assert all(any(n.startswith(p) for n in entries) for p in prefixes)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
        ("conditioner.embedders.0.model.ln_final.weight", "refiner"),
        ("edm_mean", "EDM"),
        ("control_model.time_embed.0.weight", "ControlNet"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, key, words):
    save_file({key: torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        load_parts(tmp_path / "x.safetensors")
    assert words in str(caught.value)
    assert "expected Stable Diffusion 1.x, 2.x or XL" in str(caught.value)


@pytest.mark.parametrize(("width", "channels"), [(1280, 4), (768, 8), (768, 5), (32, 4), (None, 4)])
def test_unets_of_other_kinds_are_refused(width, channels):
    entries = {variants.FIRST: torch.empty(320, channels, 3, 3, device="meta")}
    if width:
        key = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        entries[key] = torch.empty(320, width, device="meta")
    with pytest.raises(ModelError, match=rf"width {width or 'none'} and takes {channels} channels"):
        variants_of(X, entries)


# --- what a model predicts ----------------------------------------------------------------------

V, EPSILON = "v_prediction", "epsilon"
SD1, SD2, SDXL = (next(r for r in VARIANTS if r.name == n) for n in ("sd1", "sd2", "sdxl"))
INPAINTING2 = next(r for r in VARIANTS if r.name == "sd2-inpainting")


@pytest.mark.parametrize(
    ("row", "entries", "metadata", "yaml", "expected", "why"),
    [
        (SD1, {}, {}, None, EPSILON, "usual"),
        (SD2, {}, {}, None, V, "usual"),
        (SDXL, {}, {}, None, EPSILON, "usual"),
        (INPAINTING2, {}, {}, None, EPSILON, "usual"),
        (SDXL, {"v_pred": torch.empty(0)}, {}, None, V, "key v_pred"),
        (SD2, {"global_step": 875_000}, {}, None, EPSILON, "2.0 base"),
        (SD2, {"global_step": torch.tensor(220_000)}, {}, None, EPSILON, "2.1 base"),
        (SD2, {"global_step": 110_000}, {}, None, V, "usual"),
        (SD2, {"global_step": {}}, {}, None, V, "usual"),
        (SD1, {"global_step": 875_000}, {}, None, EPSILON, "usual"),
        (SD2, {}, {"modelspec.prediction_type": "epsilon"}, None, EPSILON, "prediction_type"),
        (SD1, {}, {"modelspec.prediction_type": "v"}, None, V, "prediction_type"),
        (SD1, {}, {"modelspec.prediction_type": "?"}, None, EPSILON, "usual"),
        (
            SD2,
            {},
            {"modelspec.architecture": "stable-diffusion-v2-512"},
            None,
            EPSILON,
            "architecture",
        ),
        (SD1, {}, {}, "model: {params: {parameterization: v}}", V, "x.yaml beside it"),
        (SD2, {}, {}, "model: {params: {timesteps: 1000}}", EPSILON, "x.yaml beside it"),
        (SD2, {}, {}, "title: a note of the user", V, "usual"),
        (SD2, {}, {}, "- 1", V, "usual"),
        (
            SD2,
            {"global_step": 875_000},
            {},
            "model: {params: {parameterization: v}}",
            V,
            "x.yaml",
        ),
    ],
)
def test_what_a_model_predicts(tmp_path, row, entries, metadata, yaml, expected, why):
    if yaml:
        (tmp_path / "x.yaml").write_text(yaml)
    found, reason = prediction_of(tmp_path / "x.ckpt", entries, metadata, row)
    assert found == expected
    assert why in reason


BOMB = "a0: &a0 [v]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        f"{BOMB}model: {{params: {{parameterization: *a11}}}}",
        "model: {params: {parameterization: x0}}",
        "model: {params: {parameterization: [v]}}",
        "a: [",
        "!!python/object/apply:os.system ['echo ran']",
        "[" * 10_000,
        "x" * 200_000,
        "a: &a [x]\nb: \x00",
    ],
)
def test_a_configuration_beside_a_model_that_cannot_be_used(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"x\.yaml: .*take it away"):
        prediction_of(tmp_path / "x.ckpt", {}, {}, SD1)


# --- the whole way, as a user goes --------------------------------------------------------------


@pytest.fixture
def row(monkeypatch):
    """The table with a row for tiny models that have CLIP's whole vocabulary."""

    class Tiny(Variant):
        def settings(self):
            pipe = build_tiny("sd1")
            whole = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
            return {
                "unet": dict(pipe.unet.config),
                "vae": dict(pipe.vae.config),
                "text_encoder": pipe.text_encoder.config.to_dict() | whole,
                "tokenizer": {"pad_token": "<|endoftext|>"},
                "scheduler": dict(pipe.scheduler.config),
                "model_index": {},
            }

    made = Tiny(name="tiny", title="a tiny one", width=32)
    monkeypatch.setattr(variants, "VARIANTS", (*VARIANTS, made))
    return made


@pytest.fixture
def model(row, tmp_path):
    settings = row.settings()
    torch.manual_seed(0)
    parts = SimpleNamespace(
        unet=library.UNet2DConditionModel.from_config(settings["unet"]),
        vae=library.AutoencoderKL.from_config(settings["vae"]),
        text_encoders=(
            library.CLIPTextModel(library.CLIPTextConfig.from_dict(settings["text_encoder"])),
        ),
        prediction_type="epsilon",
        scheduler_config={},
    )
    save_file(contiguous(single_file(parts)), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_the_shipped_configuration_and_tokenizer_apply(model, caplog):
    caplog.set_level(logging.INFO, "ine")
    parts = load_parts(model)
    assert "model.safetensors: a tiny one, predicts epsilon (usual for it)" in caplog.text
    assert parts.name == str(model)
    assert parts.prediction_type == "epsilon"
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert parts.tokenizers[0]("a photo of a cat").input_ids == ids
    assert sample_latents(parts, ["a cat"], [0], None, SamplerSettings(steps=2))[0].isfinite().all()


def test_marks_of_v_and_zero_snr(model):
    state = load_file(model)
    save_file(state | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, model)
    parts = load_parts(model)
    assert parts.prediction_type == "v_prediction"
    assert parts.scheduler_config["rescale_betas_zero_snr"] is True
    assert parts.scheduler_config["timestep_spacing"] == "trailing"
    assert {"v_pred", "ztsnr"} <= single_file(parts).keys()
    assert single_file(parts)["v_pred"].numel() == 0


def test_generate_from_a_single_file(run_ine, model, tmp_path):
    args = ("--prompt", "a cat", "--steps", "1", "--out", tmp_path / "out")
    result = run_ine("generate", "--model", model, *args)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    unet = tmp_path / "unet.safetensors"
    save_file(contiguous(compvis_unet(load_parts(model))), unet)
    result = run_ine("generate", "--model", unet, *args)
    assert result.exit_code == 4
    assert "--unet" in result.stderr


def test_a_file_is_found_as_it_is(model, tmp_path):
    assert find_model(model) == model
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_model(model, index="config.json")
    with pytest.raises(ModelError, match="no such folder or file"):
        find_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_export_writes_a_whole_model(run_ine, tiny, tmp_path, family):
    folder, parts, _ = tiny[family]
    changes = {"conv_in.bias": parts.unet.conv_in.bias + 1}
    save_file(changes, tmp_path / "unet.safetensors")
    out = tmp_path / "out.safetensors"
    args = ("--model", folder, "--out", out, "--single-file")
    result = run_ine("unet", "export", tmp_path / "unet.safetensors", *args)
    assert result.exit_code == 0, result.output
    which = "both text encoders" if family == "sdxl" else "text encoder"
    assert f"UNet, VAE and {which} under CompVis names" in result.stdout
    said = weights_metadata(out)["modelspec.prediction_type"]
    assert said == ("v" if family == "sd2" else "epsilon")
    assert ("v_pred" in load_file(out)) == (family == "sd2")
    found = load_single_file(out, config=folder)
    applied, _ = apply_weights(parts, tmp_path / "unet.safetensors")
    assert same_tensors(found, applied)
    again, weights = apply_weights(parts, out)
    assert (weights.changed, weights.encoder_changed) == (1, 0)
    assert same_tensors(again, applied)


@pytest.mark.parametrize(("family", "which"), [("sd2", 0), ("sdxl", 1)])
def test_open_clip_encoders_are_applied(tiny, tmp_path, family, which, caplog):
    _, parts, file = tiny[family]
    prefix = encoder_prefixes(parts.text_encoders)[which]
    name = f"{prefix}transformer.resblocks.1.attn.in_proj_weight"
    value = load_file(file)[name]
    one = {f"{UNET}out.2.bias": torch.ones(4)}
    for state, changed in (({name: value + 1}, 3), ({name: value + 1} | one, 3), (one, 0)):
        save_file(state, tmp_path / "x.safetensors")
        applied, weights = apply_weights(parts, tmp_path / "x.safetensors")
        assert "CompVis checkpoint" in weights.layout
        assert (weights.encoder_changed, weights.changed) == (changed, len(state) - bool(changed))
        if changed:
            encoder = applied.text_encoders[which].state_dict()
            ends = [n for n in encoder if "layers.1.self_attn" in n and n.endswith(".weight")]
            moved = [n for n in ends if not n.endswith("out_proj.weight")]
            base = parts.text_encoders[which].state_dict()
            assert len(moved) == 3
            assert all(torch.equal(encoder[n], base[n] + 1) for n in moved)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# --- the tokenizer ------------------------------------------------------------------------------


def test_the_tokenizer_is_clips_own():
    words = clip_vocabulary()
    assert len(words) == len(set(words)) == 49408
    places = {0: "!", 255: "Ń", 256: "!</w>", 320: "a</w>", 2368: "cat</w>", 49407: "<|endoftext|>"}
    assert {n: words[n] for n in places} == places
    tokenizer = clip_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (49407, 77)
    # As OpenAI's tokenizer has it: lower case, blanks and signs, Latin letters beyond ASCII.
    assert tokenizer("A Photo,  of a CAT!!").input_ids == [
        *(49406, 320, 1125, 267, 539, 320, 2368, 748, 49407),
    ]
    assert tokenizer.decode(tokenizer("naïve café").input_ids[1:-1]).strip() == "naïve café"
    padded = tokenizer("cat", padding="max_length").input_ids
    assert padded == [49406, 2368] + [49407] * 75
    padded = clip_tokenizer("!")("cat", padding="max_length").input_ids
    assert padded == [49406, 2368, 49407] + [0] * 74
    # transformers takes what pads for a token of its own wherever it stands.
    assert clip_tokenizer("!")("cat!!").input_ids == [49406, 2368, 0, 0, 49407]


def test_a_tokenizer_can_be_saved_and_copied(tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "an astronaut riding 2 horses, é🐱"
    ids = tokenizer(text).input_ids
    assert again(text).input_ids == copy.deepcopy(tokenizer)(text).input_ids == ids
    assert again.pad_token == "<|endoftext|>"
