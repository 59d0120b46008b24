"""A pipeline of a few kilobytes: real classes, real file names, weights in float16."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

WIDTH = 16
"""Of the text states."""

WORDS = ("a", "b", "d", "g", "o")
START, END = "<|startoftext|>", "<|endoftext|>"

TOKENIZER_CONFIG = {
    "bos_token": START,
    "eos_token": END,
    "pad_token": END,
    "unk_token": {"content": END, "lstrip": False, "normalized": True, "__type": "AddedToken"},
    "model_max_length": 8,
    "tokenizer_class": "CLIPTokenizer",
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 100,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def vocabulary():
    """Return ({token: id}, merges): letters, those that end a word, two merges, two marks."""
    letters = [*WORDS, *(f"{letter}</w>" for letter in WORDS), "do", "dog</w>"]
    return {token: number for number, token in enumerate([*letters, START, END])}, [
        "d o",
        "do g</w>",
    ]


@cache
def model_folder():
    """Return the folder of the pipeline, written once; it goes when the process ends."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(tempfile.mkdtemp(prefix="fuzz-model"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    vocab, merges = vocabulary()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocab),
                hidden_size=WIDTH,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=8,
                projection_dim=WIDTH,
                bos_token_id=len(vocab) - 2,
                eos_token_id=len(vocab) - 1,
                pad_token_id=len(vocab) - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=2,
        )
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=4)
    for name, part in (("text_encoder", encoder), ("unet", unet), ("vae", vae)):
        part.half().save_pretrained(folder / name)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[mark], "content": mark, "special": True} | dict.fromkeys(FLAGS, False)
            for mark in (START, END)
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {"type": "BPE", "unk_token": END, "vocab": vocab, "merges": merges},
    }
    written = {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": SCHEDULER,
        "tokenizer/tokenizer.json": tokenizer,
        "tokenizer/tokenizer_config.json": TOKENIZER_CONFIG,
    }
    for name, value in written.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@cache
def model():
    """Return the loaded parts of the pipeline."""
    from ine.models.loading import load_parts

    return load_parts(model_folder())
