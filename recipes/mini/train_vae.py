"""Stage `vae`: an AutoencoderKL that maps 64x64 pictures to 16 channels of 8x8 latents."""

import json

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

import loop
from world import draw, sample_scene

CHANNELS = (24, 48, 96, 128)
BATCH = 8
STEPS = 4200
DECODER_STEPS = 900


def build():
    """Return the untrained autoencoder.

    Groups of the norms hold several channels at every level: with two or three, a norm over
    the group removes the flat background colour that most of a picture consists of.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )
    with torch.no_grad():
        # Start nearly without posterior noise: at the default the noise is larger than the
        # signal, and a third of the training goes into outgrowing it.
        vae.quant_conv.weight[16:] *= 0.1
        vae.quant_conv.bias[16:] = -6.0
    return vae


def pixels(world, rng, count):
    """Return scenes as a tensor in [-1, 1], (count, 3, 64, 64)."""
    batch = np.stack([draw(world, sample_scene(world, rng), rng) for _ in range(count)])
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a, b):
    """Return the peak signal-to-noise ratio of pictures in [-1, 1], mean over pictures, dB."""
    error = (a.clamp(-1, 1) - b).pow(2).flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).mean().item()


def loss_of_pictures(vae, x, generator):
    """L1 + half the L1 of neighbour differences + half the MSE + a little KL."""
    with torch.autocast(x.device.type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
    y = y.float()
    # KL by hand: keeps the latents near unit size without blurring the picture.
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    return picture_loss(x, y) + 1e-6 * kl


def picture_loss(x, y):
    """L1 + half the L1 of neighbour differences + half the MSE."""
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (y - x).abs().mean() + 0.5 * edges + 0.5 * (y - x).pow(2).mean()


def run(world, folder, steps=STEPS):
    """Train, then write `folder/vae` (float32) with the scale of its latents in the config."""
    torch.manual_seed(0)
    _, _, device = loop.start_processes()
    vae = build().to(device)
    held_out = pixels(world, np.random.default_rng(10**9), 128)

    def loss_of(step, seed):
        rng = np.random.default_rng([1, seed])
        x = pixels(world, rng, BATCH).to(device)
        return loss_of_pictures(vae, x, torch.Generator(device).manual_seed(seed)), {}

    @torch.no_grad()
    def on_sample(step):
        z = vae.encode(held_out.to(device)).latent_dist.mean
        y = vae.decode(z).sample.cpu()
        row = {"step": step, "psnr": psnr(y, held_out), "std": z.std().item()}
        with (folder / "vae.psnr.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        sheet = torch.cat([held_out[:16], y[:16]]).clamp(-1, 1)
        sheet = sheet.view(2, 16, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(128, 1024, 3)
        array = ((sheet + 1) * 127.5).byte().numpy()
        Image.fromarray(array).save(folder / "vae.png")

    loop.train(
        "vae",
        {"vae": vae},
        loss_of,
        folder,
        steps=steps,
        lr=2e-3,
        hold=0.5,
        ema=0.998,
        weight_decay=1e-4,
        every=400,
        on_sample=on_sample,
    )
    with torch.no_grad():
        sample = pixels(world, np.random.default_rng(7), 512).to(device)
        z = torch.cat([vae.encode(x).latent_dist.mean for x in sample.split(64)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    if loop.start_processes()[0] == 0:
        on_sample(steps)
        vae.save_pretrained(folder / "vae")


def run_decoder(world, folder, steps=DECODER_STEPS):
    """Train the decoder on with the encoder frozen; write `folder/vae_tuned`.

    Latents stay what they are, so this can run while or after the U-Net is trained on them.
    """
    torch.manual_seed(1)
    _, _, device = loop.start_processes()
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device)
    vae.requires_grad_(False)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    held_out = pixels(world, np.random.default_rng(10**9), 128).to(device)

    def loss_of(step, seed):
        rng = np.random.default_rng([9, seed])
        x = pixels(world, rng, 2 * BATCH).to(device)
        with torch.autocast(x.device.type, torch.bfloat16):
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mean
            # What the U-Net hands over is never exact; half the pictures are disturbed a little.
            noise = torch.randn(z[::2].shape, generator=torch.Generator().manual_seed(seed))
            z[::2] += 0.05 * noise.to(z)
            y = vae.decode(z).sample.float()
        return picture_loss(x, y), {}

    @torch.no_grad()
    def on_sample(step):
        y = vae(held_out).sample
        with (folder / "vae_tuned.psnr.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "psnr": psnr(y, held_out)}) + "\n")

    loop.train(
        "vae_tuned",
        {"decoder": decoder},
        loss_of,
        folder,
        steps=steps,
        lr=1e-3,
        hold=0.3,
        ema=0.998,
        weight_decay=1e-4,
        every=400,
        on_sample=on_sample,
    )
    if loop.start_processes()[0] == 0:
        on_sample(steps)
        vae.save_pretrained(folder / "vae_tuned")
