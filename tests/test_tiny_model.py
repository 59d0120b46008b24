import logging
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ine.models.loading import load_parts


@contextmanager
def no_log_warnings():
    """Fail on a warning in the logs of diffusers or transformers; Python's are errors already."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert [r.getMessage() for r in records] == []


def test_the_guard_against_log_warnings_can_fail():
    with pytest.raises(AssertionError, match="beware"), no_log_warnings():
        logging.getLogger("diffusers.some.module").warning("beware")


def test_diffusers_loads_and_runs_it_without_a_warning(tiny_folder):
    with no_log_warnings():
        pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        picture = pipe(
            "a dog",
            num_inference_steps=2,
            height=16,
            width=16,
            generator=generator,
            output_type="np",
        ).images
    assert picture.shape == (1, 16, 16, 3)
    assert np.isfinite(picture).all()


def test_ine_loads_the_same_weights_frozen(tiny_folder, tiny_parts):
    with no_log_warnings():
        parts = load_parts(tiny_folder)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    for ours, theirs in (
        (parts.unet, pipe.unet),
        (parts.vae, pipe.vae),
        (parts.text_encoders[0], pipe.text_encoder),
    ):
        other = theirs.state_dict()
        assert all(torch.equal(v, other[k]) for k, v in ours.state_dict().items())
        assert not ours.training
        assert not any(p.requires_grad for p in ours.parameters())
    assert parts.latent_shape == (4, 8, 8)
    assert parts.picture_size == 16
    assert parts.width == tiny_parts.width == 32


def test_the_tokenizer_is_like_clips(tiny_parts):
    tokenizer = tiny_parts.tokenizers[0]
    ids = tokenizer("a Dog, with caf\N{LATIN SMALL LETTER E WITH ACUTE}").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert ids == tokenizer("a dog, with caf\N{LATIN SMALL LETTER E WITH ACUTE}").input_ids
    assert tokenizer.model_max_length == 77
    assert tiny_parts.text_encoders[0].config.eos_token_id == tokenizer.eos_token_id


def test_cross_attention_reads_the_text_at_every_level(tiny_parts):
    names = [n for n, _ in tiny_parts.unet.named_modules() if n.endswith("attn2.to_k")]
    for place in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"):
        assert any(n.startswith(place) for n in names), place


def test_the_command_line_loads_it_without_a_word(tiny_folder):
    code = (
        "from ine.cli import quieten_libraries\n"
        "quieten_libraries()\n"
        "from ine.models.loading import load_parts\n"
        f"load_parts({str(tiny_folder)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout + done.stderr == ""
