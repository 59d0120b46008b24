"""Every step of `ine` once at true size: the published shapes, random weights, CLIP's own words.

    python tests/benchmarks/true_sizes.py sd1                      # 12 GB, some minutes
    python tests/benchmarks/true_sizes.py sdxl --json sdxl.json    # 20 GB, close to an hour

Random weights draw nothing, so this shows shapes, memory and time, not pictures. Memory is what
the process holds of its own (RssAnon), sampled, above what the libraries take. Linux only.
"""

import json
import math
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ine.embeddings.embedding import new_embedding, read_embedding, write_embedding
from ine.embeddings.fit import check_fits, fingerprints
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.guidance.safree import Safree, safree_against
from ine.guidance.sld import SafeLatent
from ine.inversion.images import ConceptPictures
from ine.inversion.invert import invert
from ine.models.clip_tokenizer import clip_tokenizer
from ine.models.inpainting import everything_masked
from ine.models.parts import DiffusionParts
from ine.models.variants import VARIANTS
from ine.recipe import InversionSettings
from ine.sampling import SamplerSettings, decode_latents, sample_latents
from ine.weights.apply import apply_weights
from ine.weights.files import write_unet_weights

TRIGGER = "fire-neg"
GB = 1e9


@torch.no_grad()
def filled(kind, settings, dtype, generator):
    """Return a model of random weights, each at the scale that keeps activations finite.

    It is made on the device of the generator.
    """
    with init_empty_weights(include_buffers=False):
        module = kind(settings) if isinstance(settings, CLIPTextConfig) else kind(**settings)
    for name, empty in list(module.named_parameters()):
        values = torch.empty(empty.shape, dtype=dtype, device=generator.device)
        if name.endswith("bias"):
            values.zero_()
        elif empty.dim() == 1:
            values.fill_(1)
        else:
            values.normal_(std=1 / math.sqrt(empty[0].numel()), generator=generator)
        owner, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner)
        owner.register_parameter(leaf, torch.nn.Parameter(values, requires_grad=False))
    return module.to(generator.device).eval()  # buffers were made on the CPU


def random_parts(variant, dtype=torch.float32, latent=None, device="cpu"):
    """Return parts of a variant's published configuration with random weights.

    Args:
        variant: A name of `ine.models.variants.VARIANTS`.
        dtype: Of the weights.
        latent: Side of a latent; None is the model's own.
        device: Where they are made; drawing billions of numbers takes a CPU a minute.
    """
    row = next(row for row in VARIANTS if row.name == variant)
    settings = row.settings()
    generator = torch.Generator(device).manual_seed(0)
    if latent:
        settings["unet"]["sample_size"] = latent
    plain = {name: _arguments(settings[name]) for name in ("unet", "vae")}
    unet = filled(UNet2DConditionModel, plain["unet"], dtype, generator)
    vae = filled(AutoencoderKL, plain["vae"], dtype, generator)
    encoders, tokenizers = [], []
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        if f"text_encoder{suffix}" in settings:
            config = CLIPTextConfig.from_dict(settings[f"text_encoder{suffix}"])
            encoders.append(filled(kind, config, dtype, generator))
            tokenizers.append(clip_tokenizer(settings[f"tokenizer{suffix}"]["pad_token"]))
    return DiffusionParts(
        name=variant,
        tokenizers=tuple(tokenizers),
        text_encoders=tuple(encoders),
        unet=unet,
        vae=vae,
        scheduler_config=settings["scheduler"],
        zeros_for_nothing=settings["model_index"].get("force_zeros_for_empty_prompt") is True,
        inpainting_input=everything_masked(unet, vae),
    )


def _arguments(settings):
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def anonymous():
    """Return this process's own memory in bytes, without mapped files."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


class Log:
    """What was measured, a row for each step."""

    def __init__(self):
        self.rows, self.start = [], anonymous()

    @contextmanager
    def step(self, name):
        """Measure the time of a block and the most memory that it held."""
        most, over = [anonymous()], threading.Event()

        def watch():
            while not over.wait(0.01):
                most[0] = max(most[0], anonymous())

        thread = threading.Thread(target=watch)
        thread.start()
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            over.set()
            thread.join()
        most[0] = max(most[0], anonymous())
        self.rows.append({"step": name, "seconds": seconds, "peak": most[0] - self.start})
        click.echo(f"{name:<46}{seconds:>9.1f} s {(most[0] - self.start) / GB:>8.2f} GB", err=True)


def partial_esd(parts, path, generator):
    """Write what ESD-x does: the 2 x 5 tensors of every cross-attention, moved a little."""
    state = parts.unet.state_dict()
    names = [n for n in state if ".attn2." in n]
    made = {
        n: state[n] + 0.01 * torch.randn(state[n].shape, generator=generator).to(state[n])
        for n in names
    }
    write_unet_weights(path, made, {"ine.method": "esd-x", "ine.concept": "fire"})
    return len(names)


def run(variant, dtype=torch.float32, latent=None, checkpointing=False, folder=None):
    """Do every step once; return {"variant": ..., "rows": [...], ...}.

    Raises:
        AssertionError: A step did not do what it should.
    """
    log, folder = Log(), Path(folder)
    generator = torch.Generator().manual_seed(1)
    with log.step("make the base (random weights)"):
        parts = random_parts(variant, dtype, latent)
    tensors = [*parts.unet.state_dict().values(), *parts.vae.state_dict().values()]
    tensors += [t for e in parts.text_encoders for t in e.state_dict().values()]
    size, largest = sum(t.nbytes for t in tensors), max(t.nbytes for t in tensors)
    count = partial_esd(parts, folder / "esd.safetensors", generator)
    with log.step(f"apply a partial ESD file ({count} tensors)"):
        unlearned, weights = apply_weights(parts, folder / "esd.safetensors", keep_base=False)
    assert weights.changed == count
    _invert(log, unlearned, folder, checkpointing)
    embedding = read_embedding(folder / f"{TRIGGER}.safetensors")
    assert not check_fits(embedding, unlearned)
    _guide(log, unlearned, embedding)
    return {
        "variant": variant,
        "dtype": str(dtype).removeprefix("torch."),
        "latent": parts.latent_shape[1],
        "threads": torch.get_num_threads(),
        "model": size,
        "largest": largest,
        "rows": log.rows,
    }


def _invert(log, parts, folder, checkpointing):
    """Take one step, save, resume with one more, and write the embedding."""
    shape = parts.latent_shape
    generator = torch.Generator().manual_seed(2)
    pictures = ConceptPictures(
        mean=torch.randn((2, *shape), generator=generator),
        std=torch.full((2, *shape), 0.1),
        captions=None,
        names=("0", "1"),
    )
    about = {"vectors": 4, "batch": 1, "lr": 5e-3, "preview_every": 1000, "schedule": "constant"}
    about["gradient_checkpointing"] = checkpointing
    state = folder / "state.safetensors"

    def steps(count, state):
        spec = InversionSettings(**about, steps=count)
        return invert(parts, pictures, spec, trigger=TRIGGER, state=state, key="k")

    checkpointed = ", checkpointed" if checkpointing else ""
    with log.step(f"one inversion step, batch 1{checkpointed}, and its state"):
        steps(1, state)
    with log.step("resume, and one more step"):
        made = steps(2, state)
    whole = steps(2, None)
    assert all(map(torch.equal, made.vectors, whole.vectors)), "a resumed run ended otherwise"
    with log.step("write the embedding, with fingerprints"):
        embedding = new_embedding(made.vectors, TRIGGER, "fire", fingerprints(parts))
        write_embedding(embedding, folder / f"{TRIGGER}.safetensors")


def _guide(log, parts, embedding):
    """Take one step of every guidance."""
    negative = Negative("", (embedding,))
    settings = SamplerSettings(steps=1, guidance_scale=7.5)
    methods = {
        "plain": ClassifierFree(),
        "cfg with the embedding": ClassifierFree(negative),
        "additive": Additive(negative, 3.0),
        "SLD": SafeLatent.preset("max", negative),
        "SAFREE, every token projected": safree_against(negative, alpha=0.0, validate=False),
        "SAFREE with re-attention": Safree(
            negative=negative, embeddings=(embedding,), alpha=0.0, validate=False, reattention=True
        ),
    }
    seen = {}
    for name, guidance in methods.items():
        with log.step(f"one step of guidance: {name}"):
            seen[name], _, calls = sample_latents(parts, ["a dog on fire"], [0], guidance, settings)
        assert seen[name].isfinite().all(), name
        log.rows[-1]["unet_calls"] = calls[0]
        assert name == "plain" or not torch.equal(seen[name], seen["plain"]), f"{name} did nothing"
    with log.step("decode a picture"):
        assert decode_latents(parts, seen["plain"]).shape[1] == parts.picture_size


def as_markdown(found):
    """Return a run's figures as a table."""
    about = (
        f"`{found['variant']}`, {found['dtype']}, latents of {found['latent']} x "
        f"{found['latent']}, {found['threads']} threads; the model takes "
        f"{found['model'] / GB:.2f} GB, its largest tensor {found['largest'] / GB:.2f} GB."
    )
    rows = [
        f"| {r['step']} | {r.get('unet_calls', '')} | {r['seconds']:.1f} s | "
        f"{r['peak'] / GB:.2f} GB |"
        for r in found["rows"]
    ]
    return "\n".join(
        [about, "", "| step | U-Net rows | time | peak memory |", "|---|---|---|---|", *rows]
    )


@click.command()
@click.argument("variant", type=click.Choice([row.name for row in VARIANTS]))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--latent", type=click.IntRange(8), help="Side of a latent; else the model's own.")
@click.option("--checkpointing", is_flag=True, help="Inversion with gradient checkpointing.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here.")
def main(variant, dtype, latent, checkpointing, out):
    """Do every step once at true size, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(variant, getattr(torch, dtype), latent, checkpointing, folder)
    if out:
        out.write_text(json.dumps(found, indent=1))
    click.echo(as_markdown(found))


if __name__ == "__main__":
    main()
