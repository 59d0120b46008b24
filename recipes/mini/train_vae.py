"""Stage `vae`: an AutoencoderKL that maps 64x64 pictures to 16 channels of 8x8 latents."""

import json

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

import loop
from compose import Icons, pool_of, sample_scenes

CHANNELS = (16, 32, 128, 192)
POOL = 40_000
BATCH = 16
STEPS = 6500
DECODER_STEPS = 1400


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


def pool(world, seed, count, device="cpu"):
    """Return scenes ready to be composed; other seeds give other scenes."""
    rng = np.random.default_rng(seed)
    return pool_of(world, sample_scenes(world, rng, count), rng, Icons.of(world, device), device)


def rows_of(pool, generator, count):
    """Return the rows of a random batch."""
    rows = torch.randint(len(pool.colours), (count,), generator=generator)
    return rows.to(pool.colours.device)


def psnr(a, b):
    """Return the peak signal-to-noise ratio of pictures in [-1, 1], mean over pictures, dB."""
    error = (a.clamp(-1, 1) - b).pow(2).flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).mean().item()


def loss_of_pictures(vae, x, generator):
    """L1 + half the L1 of neighbour differences + half the MSE + a little KL."""
    with loop.precision_on(x.device):
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
    device = loop.device_of_training()
    vae = build().to(device, memory_format=torch.channels_last)
    scenes = pool(world, 1, POOL, device)
    held_out = pool(world, 10**9, 128).compose(torch.arange(128))

    def loss_of(seed):
        generator = torch.Generator().manual_seed(seed)
        x = scenes.compose(rows_of(scenes, generator, BATCH))
        x = x.contiguous(memory_format=torch.channels_last)
        return loss_of_pictures(vae, x, torch.Generator(device).manual_seed(seed))

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
        sample = pool(world, 7, 512, device)
        parts = torch.arange(512, device=device).split(64)
        z = torch.cat([vae.encode(sample.compose(rows)).latent_dist.mean for rows in parts])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    on_sample(steps)
    vae.save_pretrained(folder / "vae")


def run_decoder(world, folder, steps=DECODER_STEPS):
    """Train the decoder on with the encoder frozen; write `folder/vae_tuned`.

    Latents stay what they are, so this can run while or after the U-Net is trained on them.
    """
    torch.manual_seed(1)
    device = loop.device_of_training()
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device)
    vae.requires_grad_(False)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    scenes = pool(world, 9, POOL, device)
    held_out = pool(world, 10**9, 128, device).compose(torch.arange(128, device=device))

    def loss_of(seed):
        generator = torch.Generator().manual_seed(seed)
        x = scenes.compose(rows_of(scenes, generator, BATCH))
        with loop.precision_on(x.device):
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mean
            # What the U-Net hands over is never exact; half the pictures are disturbed a little.
            noise = torch.randn(z[::2].shape, generator=generator)
            z[::2] += 0.05 * noise.to(z)
            y = vae.decode(z).sample.float()
        return picture_loss(x, y)

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
    on_sample(steps)
    vae.save_pretrained(folder / "vae_tuned")
