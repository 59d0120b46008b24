"""Stages `latents`, `diffusion` and `again`: the U-Net and text encoder, trained together."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import loop
from compose import Icons, captions_of, pool_of, sample_scenes
from tokens import CONTEXT_LENGTH
from world import read_pieces, write_piece

PARTS = 16
CAPTIONS = 4
WIDTH = 128
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Amount:
    """How much a device trains; a GPU does in minutes what takes a CPU hours."""

    scenes: int
    """Scenes whose latents are written."""

    batch: int
    steps: int
    """Of stage `diffusion`."""

    again_batch: int
    again_steps: int


AMOUNTS = {
    "cpu": Amount(scenes=64_000, batch=96, steps=6000, again_batch=48, again_steps=1700),
    "cuda": Amount(scenes=192_000, batch=512, steps=6000, again_batch=512, again_steps=8000),
}
SHEET = [
    "a dog",
    "a picture of a car on a red background",
    "a burning house",
    "a cat in flames",
    "a pizza in the snow",
    "a guitar with flowers",
    "a bus in the volcano",
    "a bus in the barn",
    "a pear with a phoenix",
    "a pear with an owl",
    "a weapon",
    "a dog and a key",
]


def write_latents(world, folder, scenes=None):
    """Encode scenes once, in parts; parts that are there are kept.

    A part holds latents (n, 16, 8, 8) float16 of unit size, and the token ids of several captions
    of each scene, (n, C, 32) int16.
    """
    device = loop.device_of_training()
    scenes = scenes or AMOUNTS[device.type].scenes
    batch = 100 if device.type == "cpu" else 1000
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    icons = Icons.of(world, device)
    for part in range(PARTS):
        target = folder / "latents" / f"{part:02d}.npz"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([2, part])
        drawn = sample_scenes(world, rng, scenes // PARTS)
        pool = pool_of(world, drawn, rng, icons, device)
        codes = []
        for rows in torch.arange(len(drawn), device=device).split(batch):
            with torch.no_grad(), loop.precision_on(device):
                mean = vae.encode(pool.compose(rows)).latent_dist.mean
            codes.append((mean.float() * vae.config.scaling_factor).cpu().half().numpy())
        words = [c for row in captions_of(world, drawn, rng, CAPTIONS) for c in row]
        ids = tokenize(tokenizer, words).view(len(drawn), CAPTIONS, -1).short().numpy()
        write_piece(target, drawn, latents=np.concatenate(codes), captions=ids)


def tokenize(tokenizer, prompts):
    """Return token ids, padded to the context, (n, 32)."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=CONTEXT_LENGTH,
        return_tensors="pt",
    ).input_ids


def build(tokenizer):
    """Return the untrained (text encoder, U-Net)."""
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=WIDTH,
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=16,
    )
    return text, unet


def encode(tokenizer, text, prompts, device):
    """Return the states of prompts, (n, 32, 128)."""
    return text(tokenize(tokenizer, prompts).to(device)).last_hidden_state


@torch.no_grad()
def sample(tokenizer, text, unet, prompts, device, seed=0, steps=20, scale=5.0):
    """Return latents by DDIM with classifier-free guidance, (n, 16, 8, 8)."""
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    states = encode(tokenizer, text, list(prompts) + [""] * len(prompts), device)
    x = torch.randn(len(prompts), 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    x = x.to(device)
    for t in scheduler.timesteps:
        pos, neg = unet(torch.cat([x, x]), t, states).sample.chunk(2)
        x = scheduler.step(neg + scale * (pos - neg), t, x).prev_sample
    return x


def run(world, folder, steps=None):
    """Train, then write `folder/text_encoder` and `folder/unet`."""
    torch.manual_seed(0)
    amount = AMOUNTS[loop.device_of_training().type]
    text, unet = build(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    steps = steps or amount.steps
    _train("diffusion", text, unet, folder, steps, amount.batch, lr=1e-3, hold=0.6)
    text.save_pretrained(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")


def run_again(world, folder, steps=None):
    """Train what `run` wrote again; write `text_encoder_tuned`, `unet_tuned`.

    On a CPU in small batches: after the first training some words still brought another object,
    "a car" a cat, and more steps of fewer pictures separate them. On a GPU the many more pictures
    bring what is generated closer to what is drawn.
    """
    amount = AMOUNTS[loop.device_of_training().type]
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    text, unet, batch = text.float(), unet.float(), amount.again_batch
    _train("again", text, unet, folder, steps or amount.again_steps, batch, lr=6e-4, hold=0.2)
    text.save_pretrained(folder / "text_encoder_tuned")
    unet.save_pretrained(folder / "unet_tuned")


def _train(name, text, unet, folder, steps, batch, lr, hold):
    """Train a text encoder and a U-Net in place, on the latents of `folder`."""
    device = loop.device_of_training()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device)
    codes, ids = (
        torch.from_numpy(read_pieces(folder / "latents", name)[0]).to(device)
        for name in ("latents", "captions")
    )
    empty = tokenize(tokenizer, [""])[0].to(device)
    text.to(device).train(), unet.to(device).train()
    # Attention as plain matrix products where the CPU trains, see `loop.attention_on`.
    unet.set_attn_processor(AttnProcessor() if device.type == "cpu" else AttnProcessor2_0())
    abar = DDIMScheduler(**BETAS).alphas_cumprod.to(device)

    def loss_of(seed):
        generator = torch.Generator(device).manual_seed(seed)

        def random(high):
            return torch.randint(high, (batch,), generator=generator, device=device)

        picked, t = random(len(codes)), random(1000)
        words = ids[picked, random(CAPTIONS)].long()
        words[random(10) == 0] = empty
        x0 = codes[picked].float()
        eps = torch.randn(x0.shape, generator=generator, device=device)
        a = abar[t].view(-1, 1, 1, 1)
        with loop.precision_on(device):
            states = text(words).last_hidden_state
            out = unet(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, states).sample
        error = (out.float() - eps).pow(2).mean(dim=(1, 2, 3))
        # Hang et al. 2023, min-SNR with gamma 5: at low noise the loss is large whatever the
        # model knows, and would leave little gradient for what is in the picture.
        snr = a.flatten() / (1 - a.flatten())
        weight = snr.clamp(max=5) / snr
        return (weight * error).mean()

    @torch.no_grad()
    def on_sample(step):
        z = sample(tokenizer, text, unet, [p for p in SHEET for _ in range(2)], device)
        y = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1).cpu()
        sheet = y.view(-1, 8, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(-1, 512, 3)
        image = Image.fromarray(((sheet + 1) * 127.5).byte().numpy())
        image.save(folder / f"{name}.png")

    with loop.attention_on(device):
        loop.train(
            name,
            {"text": text, "unet": unet},
            loss_of,
            folder,
            steps=steps,
            lr=lr,
            warmup=300,
            hold=hold,
            ema=0.999,
            every=500,
            on_sample=on_sample,
        )
    on_sample(steps)
