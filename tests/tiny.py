"""Tiny pipelines of every family: real classes, random weights, no download.

`build_tiny("sdxl")` is to SDXL what conftest's `tiny_folder` is to SD 1.x: latents (4, 8, 8),
pictures 16 x 16.
"""

from contextlib import contextmanager

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ine.guidance.look_ahead import ConceptProbe, LookAhead
from ine.guidance.probe import Probe, ProbeGate

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FEATURES = 192
"""Numbers that a probe reads of a tiny U-Net of any kind; of the bundled model's 768."""

KINDS = ("sd1", "sd2", "sdxl", "inpainting", "lcm", "turbo")


def build_tiny(kind):
    """Return a pipeline of a kind of KINDS."""
    base = _sd1()
    if kind == "sd1":
        return base
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return BUILDERS[kind](base)


def _sd1():
    """A Stable Diffusion of real classes, random weights, width 32, latents (4, 8, 8)."""
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


def tiny_unet(base, **changes):
    """Return a U-Net with the settings of the base's, some of them changed."""
    settings = {k: v for k, v in base.unet.config.items() if not k.startswith("_")}
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def _stable_diffusion(base, unet, scheduler, kind=StableDiffusionPipeline, **changes):
    parts = {
        "vae": base.vae,
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "unet": unet,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return kind(**{**parts, **changes})


def _padding_with(base, pad_token):
    """Return a tokenizer like the base's that fills texts up with another token."""
    return type(base.tokenizer)(
        vocab=base.tokenizer.get_vocab(),
        merges=[],
        model_max_length=77,
        bos_token=base.tokenizer.bos_token,
        eos_token=base.tokenizer.eos_token,
        unk_token=base.tokenizer.eos_token,
        pad_token=pad_token,
    )


def _sd2(base):
    # OpenCLIP's activation; by it a single file knows under which names the encoder goes.
    settings = {**base.text_encoder.config.to_dict(), "hidden_act": "gelu"}
    encoder = CLIPTextModel(CLIPTextConfig(**settings)).eval()
    unet = tiny_unet(base, use_linear_projection=True, attention_head_dim=(4, 8))
    scheduler = DDIMScheduler(
        **SCHEDULE, prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    theirs = {"text_encoder": encoder, "tokenizer": _padding_with(base, "!")}
    return _stable_diffusion(base, unet, scheduler, **theirs)


def _inpainting(base):
    unet = tiny_unet(base, in_channels=9)
    return _stable_diffusion(base, unet, base.scheduler, StableDiffusionInpaintPipeline)


def _lcm(base):
    unet = tiny_unet(base, time_cond_proj_dim=16)
    return _stable_diffusion(base, unet, LCMScheduler(**SCHEDULE, steps_offset=1))


def _turbo(base):
    scheduler = EulerAncestralDiscreteScheduler(
        **SCHEDULE, timestep_spacing="trailing", steps_offset=1
    )
    return _stable_diffusion(base, tiny_unet(base), scheduler)


def _sdxl(base):
    settings = base.text_encoder.config.to_dict()
    larger = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3}
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(**{**settings, **larger, "projection_dim": 24, "hidden_act": "gelu"})
    )
    unet = tiny_unet(
        base,
        cross_attention_dim=80,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        transformer_layers_per_block=(1, 2),
    )
    return StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=second.eval(),
        tokenizer=base.tokenizer,
        tokenizer_2=_padding_with(base, "!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


BUILDERS = {
    "sd2": _sd2,
    "sdxl": _sdxl,
    "inpainting": _inpainting,
    "lcm": _lcm,
    "turbo": _turbo,
}


def save_tiny_clip(folder, tokenizer_folder, image_size, features, context=77):
    """Save a CLIPModel of random weights with a tokenizer; return the folder.

    Args:
        folder: Where it goes.
        tokenizer_folder: The tokenizer of a tiny pipeline.
        image_size: Side of its pictures.
        features: Width of its features.
        context: Tokens of a text.
    """
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    shared = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context,
        "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
        "pad_token_id": len(tokenizer) - 1,
    }
    vision = {**shared, "image_size": image_size, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=features)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def probe_gate(threshold, queries=(0.0,), features=FEATURES, **settings):
    """Return a gate of random probes; its scores differ from picture to picture."""
    generator = torch.Generator().manual_seed(7)
    probes = [Probe(torch.randn(features, generator=generator), 0.0) for _ in queries]
    return ProbeGate(threshold, tuple(probes), queries, **settings)


def look_ahead(threshold, concept="fire", seed=7, features=FEATURES, **settings):
    """Return a look-ahead of a random probe and three coarse steps."""
    probe = Probe(noise(features, seed=seed), 0.0)
    asked = ConceptProbe(concept=concept, probe=probe, threshold=threshold)
    return LookAhead(probes=(asked,), **{"steps": 3, **settings})


def noise(*shape, seed=0):
    """Unit Gaussian noise of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def counted_rows(unet):
    """Yield a list that gets the number of rows of every U-Net call."""
    rows = []
    handle = unet.register_forward_hook(lambda _m, inputs, _out: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()
