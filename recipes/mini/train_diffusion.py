"""Stages `latents` and `diffusion`: the U-Net and the text encoder, trained together."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import loop
from tokens import CONTEXT_LENGTH
from world import caption, draw, read_pieces, sample_scene, write_piece

SCENES = 60_000
BATCH = 48
STEPS = 5000
WIDTH = 128
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
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


def write_latents(world, folder, scenes=SCENES):
    """Encode scenes once; each process writes its share of `latents.npy` and `scenes.json`."""
    rank, world_size, device = loop.start_processes()
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    for part in range(rank, 20, world_size):
        target = folder / "latents" / f"{part:02d}.npz"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([2, part])
        drawn = [sample_scene(world, rng) for _ in range(scenes // 20)]
        codes = []
        for start in range(0, len(drawn), 64):
            x = np.stack([draw(world, s, rng) for s in drawn[start : start + 64]])
            x = torch.from_numpy(x).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                mean = vae.encode(x).latent_dist.mean
            codes.append((mean.float() * vae.config.scaling_factor).cpu().half().numpy())
        write_piece(target, drawn, latents=np.concatenate(codes))


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
    ids = tokenizer(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=CONTEXT_LENGTH,
        return_tensors="pt",
    ).input_ids
    return text(ids.to(device)).last_hidden_state


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


def run(world, folder, steps=STEPS):
    """Train, then write `folder/text_encoder` and `folder/unet`."""
    torch.manual_seed(0)
    _, _, device = loop.start_processes()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device)
    codes, scenes = read_pieces(folder / "latents", "latents")
    text, unet = build(tokenizer)
    text.to(device), unet.to(device)
    abar = DDIMScheduler(**BETAS).alphas_cumprod.to(device)

    def loss_of(step, seed):
        rng = np.random.default_rng([3, seed])
        picked = rng.integers(len(scenes), size=BATCH)
        words = [caption(world, scenes[i], rng) if rng.random() > 0.1 else "" for i in picked]
        generator = torch.Generator().manual_seed(seed)
        x0 = torch.from_numpy(codes[picked]).float()
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (BATCH,), generator=generator)
        x0, eps, t = x0.to(device), eps.to(device), t.to(device)
        a = abar[t].view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            states = encode(tokenizer, text, words, device)
            out = unet(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, states).sample
        error = (out.float() - eps).pow(2).mean(dim=(1, 2, 3))
        # Hang et al. 2023, min-SNR with gamma 5: at low noise the loss is large whatever the
        # model knows, and would leave little gradient for what is in the picture.
        snr = a.flatten() / (1 - a.flatten())
        weight = snr.clamp(max=5) / snr
        return (weight * error).mean(), {"plain": error.mean().item()}

    @torch.no_grad()
    def on_sample(step):
        z = sample(tokenizer, text, unet, [p for p in SHEET for _ in range(2)], device)
        y = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1).cpu()
        sheet = y.view(-1, 8, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(-1, 512, 3)
        image = Image.fromarray(((sheet + 1) * 127.5).byte().numpy())
        image.save(folder / "diffusion.png")

    loop.train(
        "diffusion",
        {"text": text, "unet": unet},
        loss_of,
        folder,
        steps=steps,
        lr=1e-3,
        warmup=300,
        hold=0.6,
        ema=0.999,
        every=500,
        on_sample=on_sample,
    )
    if loop.start_processes()[0] == 0:
        on_sample(steps)
        text.save_pretrained(folder / "text_encoder")
        unet.save_pretrained(folder / "unet")
