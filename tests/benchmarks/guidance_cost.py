"""What guidance costs, as ratios against a plain diffusers pipeline in the same run.

    python tests/benchmarks/guidance_cost.py            # mini, a minute
    python tests/benchmarks/guidance_cost.py --sd15     # SAFREE's projection at SD 1.5 sizes, 8 GB

Methods take turns, so that what else the machine does falls on all of them; the figure is the
median over rounds of the ratio within a round. No test: a busy machine would fail it.
"""

import argparse
import math
import statistics
import time
from dataclasses import replace

import click
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ine.calibration.features import noised_features
from ine.embeddings.embedding import new_embedding, read_embedding
from ine.files import shipped
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.contextual import Contextual
from ine.guidance.gates import Gated
from ine.guidance.look_ahead import ConceptProbe, LookAhead
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.protocol import Prompts
from ine.guidance.reattention import Reattention
from ine.guidance.restart import Restart
from ine.guidance.safree import Safree, safree_against
from ine.guidance.sld import SafeLatent
from ine.models.loading import load_parts
from ine.models.parts import DiffusionParts
from ine.sampling import SamplerSettings, sample_latents

BARS = {
    "plain": "",
    "CFG + embedding": "1.02",
    "additive": "1.5 + 3%",
    "contextual": "1.5 + 3%",
    "SLD": "1.5 + 3%",
    "recognition gate, closed": "1.1 calls",
}


def look_ahead(threshold, width):
    """Return a look-ahead that opens for every picture or for none."""
    asked = ConceptProbe(concept="fire", probe=Probe(torch.zeros(width), 0.0), threshold=threshold)
    return LookAhead(probes=(asked,))


def methods_of(parts, embedding):
    """Return {name: guidance}."""
    negative = Negative("", (embedding,))
    width = noised_features(
        parts, torch.zeros(1, *parts.latent_shape), 500.0, 0.5, torch.Generator()
    ).shape[1]
    gate = ProbeGate(math.inf, (Probe(torch.zeros(width), 0.0),), (0.5,))
    additive = Additive(negative, 5.0)
    # Every token a trigger and every step projected: the most that SAFREE can cost.
    safree = replace(safree_against(negative), alpha=0.0, validate=False)
    return {
        "plain": ClassifierFree(),
        "CFG + embedding": ClassifierFree(negative),
        "additive": additive,
        "contextual": Contextual(negative, 5.0),
        "SLD": SafeLatent.preset("max", negative),
        "SAFREE, all steps": safree,
        "SAFREE with re-attention, all steps": replace(safree, reattention=Reattention()),
        "recognition gate, closed": Gated(additive, gate),
        "look-ahead, closed": Gated(additive, look_ahead(math.inf, width)),
        "look-ahead, opened": Gated(additive, look_ahead(-1.0, width)),
        "restart, closed": Restart(additive, gate),
        "restart, once": Restart(additive, replace(gate, threshold=-1.0), (1.0,)),
    }


def pipeline_of(parts):
    """Return the same model as a diffusers pipeline."""
    config = {**parts.scheduler_config, "clip_sample": False}
    pipe = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoders[0],
        tokenizer=parts.tokenizers[0],
        unet=parts.unet,
        scheduler=DDIMScheduler.from_config(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def timed(run):
    """Return the seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def on_mini(rounds, steps, batch):
    """Print the table of the bundled model."""
    parts = load_parts("mini")
    file = shipped("embeddings") / "mini-fire-uce" / "fire-neg.safetensors"
    methods = methods_of(parts, read_embedding(file))
    pipe = pipeline_of(parts)
    prompts = [f"a {n}" for n in ("dog", "cat", "house", "car", "star", "key", "bell", "fish")]
    prompts, seeds = (prompts * batch)[:batch], list(range(batch))
    settings = SamplerSettings(steps=steps, guidance_scale=5.0, batch=batch)

    def peer():
        pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="latent",
        )

    calls = {
        name: statistics.mean(sample_latents(parts, prompts, seeds, guidance, settings)[2])
        for name, guidance in methods.items()
    }
    peer()
    ratios = {name: [] for name in methods}
    for _ in range(rounds):
        before = timed(peer)
        for name, guidance in methods.items():
            took = timed(lambda g=guidance: sample_latents(parts, prompts, seeds, g, settings))
            # The peer on both sides of each: a machine that slows down slows both.
            after = timed(peer)
            ratios[name].append(2 * took / (before + after))
            before = after
    click.echo(
        f"mini, {steps} steps, {batch} pictures, {rounds} rounds; against diffusers' pipeline"
    )
    click.echo("| | calls | wall, median (least to most) | bar |\n|---|---|---|---|")
    for name, found in ratios.items():
        share = calls[name] / calls["plain"]
        spread = f"{min(found):.3f} to {max(found):.3f}"
        click.echo(
            f"| {name} | {share:.3f} | {statistics.median(found):.3f} ({spread}) "
            f"| {BARS.get(name, '')} |"
        )


@torch.no_grad()
def on_sd15():
    """Print SAFREE's rewriting as a share of 50 steps, random weights of true sizes."""
    tokenizer = load_parts("mini").tokenizers[0]
    tokenizer.model_max_length = 77
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    parts = DiffusionParts(
        name="sd15",
        tokenizers=(tokenizer,),
        text_encoders=(encoder,),
        unet=unet.eval(),
        vae=AutoencoderKL(block_out_channels=(32,)),
        scheduler_config={},
    )
    vectors = torch.randn(4, 768, generator=torch.Generator().manual_seed(0)) * 0.01
    embedding = new_embedding(vectors, "fire-neg", "fire")
    guidance = Safree(negative=Negative("", (embedding,)), embeddings=(embedding,))
    request = Prompts(parts=parts, texts=("a dog and a cat on a red background",), scale=7.5)

    def begin(method):
        with method.begin(request):
            pass

    x, states = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    step = lambda: unet(x, torch.tensor(500), encoder_hidden_states=states)  # noqa: E731
    plain = ClassifierFree(Negative("", (embedding,)))
    step()
    begin(guidance)
    call = statistics.median(timed(step) for _ in range(3))
    extra = statistics.median(
        timed(lambda: begin(guidance)) - timed(lambda: begin(plain)) for _ in range(5)
    )
    click.echo(
        f"SD 1.5 sizes: a step {call:.2f} s, SAFREE's rewriting {extra:.3f} s more than CFG's"
    )
    click.echo(f"share of a 50-step run: {extra / (50 * call):.4f} (bar .05)")


def main():
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sd15", action="store_true")
    given = parser.parse_args()
    if given.sd15:
        on_sd15()
    else:
        on_mini(given.rounds, given.steps, given.batch)


if __name__ == "__main__":
    main()
