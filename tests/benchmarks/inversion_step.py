"""Speed of an inversion step at true size: steps per second and model-flop use, random weights.

    python tests/benchmarks/inversion_step.py                          # CUDA: sd1 and sdxl, bf16
    python tests/benchmarks/inversion_step.py sd1 --batch 4 --compile no
    python tests/benchmarks/inversion_step.py                          # CPU: a dry run, "tiny"

A step is what `ine invert` does in one: noised latents, captions through the text encoder, the
U-Net forward and backward, AdamW on the vectors. Model-flop use (MFU) is the floating-point
operations that forward and backward need (no recomputation, no gradients of the frozen weights),
per second, over the peak of the device for dense products of that type. Prints a Markdown table.
"""

import statistics
import time
from dataclasses import dataclass

import click
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from ine.inversion.images import ConceptPictures
from ine.inversion.invert import batch_loss
from ine.inversion.precision import in_type
from ine.inversion.start import start_vectors
from ine.models.clip_tokenizer import clip_tokenizer
from ine.models.parts import DiffusionParts
from ine.models.variants import VARIANTS
from ine.recipe import InversionSettings
from ine.runtime import DTYPES, generator_for, pick_device
from ine.sampling import make_scheduler

try:
    from benchmarks.true_sizes import filled, random_parts
except ModuleNotFoundError:  # run as a script
    from true_sizes import filled, random_parts

PEAKS = {
    # Dense bfloat16 or float16 with float32 sums, 10^12 per second, of the makers' data sheets.
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Part of a GPU's name -> its peak; the first that fits counts."""

IMAGE_STEPS = 3000
"""The paper's steps times its pictures per step."""

TINY = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "sample_size": 16,
}
"""What differs from SD 1.x in the dry run."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row."""

    variant: str
    batch: int
    compiled: bool
    seconds: float
    """Median of a step."""

    flops: float
    """Of a step."""

    peak: float | None
    """Of the device, per second."""

    memory: float | None
    """Most bytes on the GPU."""

    def cells(self):
        """Return the row of the table."""
        rate = self.flops / self.seconds
        return [
            self.variant,
            str(self.batch),
            "yes" if self.compiled else "no",
            f"{1 / self.seconds:.2f}",
            f"{rate / 1e12:.3g}",
            f"{rate / self.peak:.2f}" if self.peak else "-",
            f"{IMAGE_STEPS / self.batch * self.seconds:.1f} s",
            f"{self.memory / 1e9:.1f} GB" if self.memory else "-",
        ]


HEADER = [
    *("model", "batch", "torch.compile", "steps/s", "TFLOP/s", "of peak"),
    *(f"{IMAGE_STEPS} image-steps", "memory"),
]


def tiny_parts() -> DiffusionParts:
    """Return SD 1.x parts with a U-Net of a few channels, a text encoder of one layer, no VAE."""
    row = next(row for row in VARIANTS if row.name == "sd1")
    settings, generator = row.settings(), torch.Generator().manual_seed(0)
    unet = {k: v for k, v in settings["unet"].items() if not k.startswith("_")} | TINY
    text = CLIPTextConfig.from_dict(settings["text_encoder"] | {"num_hidden_layers": 1})
    return DiffusionParts(
        name="tiny",
        tokenizers=(clip_tokenizer(settings["tokenizer"]["pad_token"]),),
        text_encoders=(filled(CLIPTextModel, text, torch.float32, generator),),
        unet=filled(UNet2DConditionModel, unet, torch.float32, generator),
        vae=torch.nn.Identity(),
        scheduler_config=settings["scheduler"],
    )


def parts_for(variant: str, device: torch.device, dtype: torch.dtype) -> DiffusionParts:
    """Return random parts on the device; the VAE, which no step uses, stays where it is."""
    # As `ine` opens a model there: text encoders in the type of the model, on CPUs float32.
    own = dtype if device.type == "cuda" else torch.float32
    parts = tiny_parts() if variant == "tiny" else random_parts(variant, own, device=device)
    encoders = [encoder.to(device, own) for encoder in parts.text_encoders]
    parts = parts.with_text_encoders(encoders).with_unet(parts.unet.to(device), "random")
    return in_type(parts, dtype)


def step_of(parts: DiffusionParts, batch: int):
    """Return a function that does one step of an inversion with `batch` pictures."""
    spec = InversionSettings(batch=batch, vectors=1)
    shape = parts.latent_shape
    generator = torch.Generator().manual_seed(0)
    pictures = ConceptPictures(
        mean=torch.randn((4, *shape), generator=generator),
        std=torch.full((4, *shape), 0.1),
        captions=("dog", "cat", "car", "house"),
        names=tuple("0123"),
    )
    alpha_bar = make_scheduler("ddim", parts.scheduler_config, 50).alphas_cumprod
    vectors = [v.requires_grad_(True) for v in start_vectors(parts, spec, 0)]
    optimiser = torch.optim.AdamW(vectors, lr=spec.lr)

    def step(number: int) -> None:
        optimiser.zero_grad()
        asked = (vectors, "fire-neg", (), alpha_bar, generator_for(0, "step", number))
        batch_loss(parts, pictures, spec, *asked).backward()
        optimiser.step()

    return step


def measure(
    variant: str, parts: DiffusionParts, batch: int, compiled: bool, steps: int, peak: float | None
) -> Measured:
    """Return the speed of a step."""
    with FlopCounterMode(display=False) as counter:
        step_of(parts, batch)(0)
    cuda = parts.device.type == "cuda"
    if compiled:
        parts = parts.with_unet(torch.compile(parts.unet), "compiled")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    step, seconds = step_of(parts, batch), []
    for number in range(steps + 2):
        began = time.perf_counter()
        step(number)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return Measured(
        variant=variant,
        batch=batch,
        compiled=compiled,
        seconds=statistics.median(seconds[2:]),
        flops=float(counter.get_total_flops()),
        peak=peak,
        memory=float(torch.cuda.max_memory_allocated()) if cuda else None,
    )


def peak_of(device: torch.device) -> float | None:
    """Return the peak of a GPU in the table, per second; None for others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAKS.items() if part in name), None)


@click.command()
@click.argument("variants", nargs=-1)
@click.option(
    "--batch", "batches", type=int, multiple=True, help="Pictures a step; again for more."
)
@click.option("--compile", "how", type=click.Choice(["both", "no", "yes"]), default=None)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--steps", type=int, default=None, help="Steps that are timed; default 20, on CPUs 2."
)
@click.option("--peak", type=float, default=None, help="Peak of the device in TFLOP/s.")
def main(variants, batches, how, dtype, device, steps, peak):
    """Print the table for VARIANTS: sd1, sd2, sdxl or tiny."""
    place = pick_device(device)
    cuda = place.type == "cuda"
    variants = variants or (("sd1", "sdxl") if cuda else ("tiny",))
    batches = batches or ((1, 4, 8, 16) if cuda else (1, 2))
    count = steps or (20 if cuda else 2)
    ways = {"both": (False, True), "no": (False,), "yes": (True,)}
    most = peak * 1e12 if peak else peak_of(place)
    name = torch.cuda.get_device_name(place) if cuda else f"CPU, {torch.get_num_threads()} threads"
    click.echo(f"{name}, {dtype}, torch {torch.__version__}\n")
    click.echo("| " + " | ".join(HEADER) + " |")
    click.echo("|" + "---|" * len(HEADER))
    for variant in variants:
        parts = parts_for(variant, place, DTYPES[dtype])
        for batch in batches:
            for compiled in ways[how or ("both" if cuda else "no")]:
                try:
                    row = measure(variant, parts, batch, compiled, count, most)
                except torch.cuda.OutOfMemoryError:
                    click.echo(f"| {variant} | {batch} | out of memory |" + " |" * 5)
                    continue
                click.echo("| " + " | ".join(row.cells()) + " |")


if __name__ == "__main__":
    main()
