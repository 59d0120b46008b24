import importlib.util
import os
from types import SimpleNamespace

import pytest

# Before torch is imported: threads that spin while they wait starve each other on a busy machine,
# tiny models gain nothing from a second thread, and no test may reach for the network.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in [n for n in os.environ if n.startswith("INE_")]:
    del os.environ[name]  # ine takes options from there

if importlib.util.find_spec("torchvision"):
    raise pytest.UsageError(
        "torchvision is installed here. Nothing in ine needs it, and where its build does not "
        "match torch's it breaks the import of diffusers and transformers. "
        "Uninstall it, or make a fresh virtual environment."
    )


def build_tiny_pipeline():
    """A Stable Diffusion of real classes, random weights, width 32, latents (4, 8, 8)."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    symbols = sorted(ByteLevel.alphabet())
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [*symbols, *(s + "</w>" for s in symbols), start, end]
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        model_max_length=77,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                projection_dim=32,
                # transformers pools at this id; 2 would switch on an old rule of its own.
                bos_token_id=len(words) - 2,
                eos_token_id=len(words) - 1,
                pad_token_id=len(words) - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            norm_num_groups=4,
            scaling_factor=0.18215,
        )
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a diffusers pipeline: real classes, random weights, no download."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_parts(tiny_folder):
    """The parts of `tiny_folder`, frozen; a test that changes weights works on a copy."""
    from ine.models.parts import load_parts

    return load_parts(tiny_folder)


@pytest.fixture
def run_ine():
    """Run a command in this process as `main` would: run_ine("recipe", "list").stdout."""
    from click.testing import CliRunner

    from ine.cli import cli

    def run(*args, **kwargs):
        result = CliRunner().invoke(cli, [str(a) for a in args], prog_name="ine", **kwargs)
        return SimpleNamespace(
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
            output=result.output,
        )

    return run
