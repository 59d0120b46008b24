"""Folders as they are published, with every key that they have: their checks let them pass."""

import json

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel

from ine.errors import ModelError
from ine.models.clip_tokenizer import END, START, clip_merges, clip_tokenizer, clip_vocabulary
from ine.models.folder import _check_kinds, read_configuration
from ine.models.tokenizers import load_tokenizer
from ine.schedules import check_schedule

TEXTS = (
    "a photo of a cat",
    "A  Photo, of CAT's (1.2)! 42 naïve café \N{EM DASH} 日本語 \N{GIRL} !!! a!b",
    "",
    "<|endoftext|> x",
    "x" * 300,
    "don't I'm we've wow!!",
)


def mark(token):
    kept = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": token, **kept}


@pytest.fixture(params=[END, "!"], ids=["clip", "open_clip"])
def tokenizer_folder(request, tmp_path):
    """A tokenizer's folder as those of SD 1.x, and as those of SD 2.x and SDXL's second one."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    marks = {"bos_token": mark(START), "eos_token": mark(END), "unk_token": mark(END)}
    files = {
        "vocab.json": {token: number for number, token in enumerate(clip_vocabulary())},
        "special_tokens_map.json": {**marks, "pad_token": request.param},
        "tokenizer_config.json": {
            **marks,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "name_or_path": "openai/clip-vit-large-patch14",
            "pad_token": request.param,
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    merges = "\n".join(" ".join(pair) for pair in clip_merges())
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return folder


def test_a_published_tokenizer_reads_as_transformers_reads_it(tokenizer_folder, tmp_path):
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(tokenizer_folder)
    theirs.save_pretrained(tmp_path / "new")
    ours = load_tokenizer(tokenizer_folder, 77, 49408)
    again = load_tokenizer(tmp_path / "new", 77, 49408)
    shipped = clip_tokenizer(theirs.pad_token)
    assert len(ours) == 49408
    for text in TEXTS:
        wanted = theirs(text, padding="max_length", truncation=True).input_ids
        for tokenizer in (ours, again, shipped):
            assert tokenizer(text, padding="max_length", truncation=True).input_ids == wanted


UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
SD2 = {
    **UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SDXL = {
    **UNET,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.20.0.dev0",
    "_name_or_path": "../sdxl-vae/",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (UNet2DConditionModel, UNET),
        (UNet2DConditionModel, SD2),
        (UNet2DConditionModel, SDXL),
        (AutoencoderKL, VAE),
    ],
    ids=["sd1", "sd2", "sdxl", "vae"],
)
def test_published_configurations_pass(kind, config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    _check_kinds(kind, read_configuration(tmp_path))
    with pytest.raises(ValueError, match="its layers_per_block is"):
        _check_kinds(kind, {**config, "layers_per_block": "2"})


SCHEDULES = {
    "sd1": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.7.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_schedules_pass(name, tmp_path):
    path = tmp_path / "scheduler_config.json"
    check_schedule(path, SCHEDULES[name])
    with pytest.raises(ModelError, match="beta_schedule"):
        check_schedule(path, {**SCHEDULES[name], "beta_schedule": "steep"})
