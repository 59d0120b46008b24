"""`ine generate`: make pictures, with an embedding as the negative."""

import json
import logging
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.guiding import guidance_of, guiding
from ine.cli.progress import bar

log = logging.getLogger("ine")


@click.command()
@click.option("--prompt", "given", multiple=True, metavar="TEXT", help="A prompt; may be repeated.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text file, one prompt a line.",
)
@click.option("--negative-prompt", default="", metavar="TEXT", help="Negative text.")
@click.option(
    "--negative-embedding",
    "embedding_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Embedding to use as a negative; may be repeated.",
)
@guiding
@options.unet
@options.model
@options.seed
@click.option(
    "--images-per-prompt",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Pictures per prompt, seeds counted up.",
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps (mini 20, else 50).")
@click.option(
    "--scheduler",
    type=click.Choice(["ddim", "dpm++", "euler", "pndm"]),
    default="ddim",
    show_default=True,
    help="Sampler.",
)
@click.option(
    "--guidance-scale",
    type=click.FloatRange(min=1, min_open=True),
    metavar="W",
    help="Strength of the prompt (mini 5, else 7.5).",
)
@click.option("--batch", type=click.IntRange(1), help="Pictures made together (mini 16, else 4).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("pictures"),
    show_default=True,
    help="Folder for pictures, index and contact sheet.",
)
@options.force
@options.device
@options.dtype
@options.json_output
def generate(
    given,
    prompts,
    negative_prompt,
    embedding_files,
    unet,
    model,
    seed,
    images_per_prompt,
    steps,
    scheduler,
    guidance_scale,
    batch,
    out,
    force,
    device,
    dtype,
    as_json,
    **guided,
):
    """Make pictures. The negative is text, embeddings, or both in one string.

    Every picture has its own seed, in its name and inside it. A run that was interrupted goes
    on where it stopped. With an embedding or weights of a recipe about people, the contact sheet
    blurs what that recipe's detector flags; the pictures themselves stay as they are.
    """
    texts = read_prompts(given, prompts)
    from ine.embedding import check_fits, read_embedding
    from ine.gallery import GalleryPlan, fill_gallery, flagger_for
    from ine.guidance.table import describe
    from ine.models.fingerprint import exact_digest
    from ine.sampling import PictureRequest, SamplerSettings

    embeddings = tuple(read_embedding(path) for path in embedding_files)
    name, source = "mini", "no --model"
    if model or embeddings or unet:
        name, source = choose.base_name(model, embeddings, unet=unet)
    choose.check_unet(unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet)
    for embedding in embeddings:
        for note in check_fits(embedding, parts):
            log.info("note: %s", note)
    small = parts.family == "mini"
    sampler = SamplerSettings(
        scheduler=scheduler,
        steps=steps or (20 if small else 50),
        guidance_scale=guidance_scale or (5.0 if small else 7.5),
        batch=batch or (16 if small else 4),
    )
    method = guidance_of(parts, sampler, embeddings, negative_prompt, guided)
    requests = tuple(
        PictureRequest(prompt=text, seed=seed + k)
        for text in texts
        for k in range(images_per_prompt)
    )
    settings = {
        "model": parts.name,
        "unet": parts.unet_name,
        "weights": exact_digest([parts.unet, parts.vae, *parts.text_encoders]),
        "negative": method.negative.prompt(),
        "guidance": describe(method),
        "scheduler": sampler.scheduler,
        "steps": sampler.steps,
        "guidance_scale": sampler.guidance_scale,
    }
    with bar(len(requests), "pictures") as update:
        rows = fill_gallery(
            out,
            parts,
            GalleryPlan(requests=requests, settings=settings),
            method,
            sampler,
            force=force,
            progress=lambda done, wanted: update(done),
            flagger=flagger_for(*_people(embeddings, unet)),
        )
    if as_json:
        click.echo(json.dumps({"out": str(out), "pictures": rows}, indent=2, ensure_ascii=False))
        return
    click.echo(f"wrote {len(rows)} pictures to {out} (sheet.png, index.jsonl)")


def read_prompts(given, file):
    """Return the prompts of `--prompt` and `--prompts`, in order.

    Raises:
        PromptError: There is none, the file cannot be read, or a prompt is empty.
    """
    from ine.errors import PromptError

    texts = list(given)
    if file:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{file}: cannot be read as UTF-8 text ({error})") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise PromptError(f"{file}: holds no prompt; one a line is expected")
        texts += found
    if not texts:
        raise PromptError("no prompt: give --prompt TEXT or --prompts FILE")
    if any(not text.strip() for text in texts):
        raise PromptError("--prompt '': a prompt is empty; for an unconditional picture give '.'")
    return texts


def _people(embeddings, unet):
    """Return (concepts, rules) by which pictures are flagged: what files say they are about."""
    from ine.models.checkpoints import weights_metadata

    concepts = [e.concept for e in embeddings]
    if unet:
        concepts.append(weights_metadata(unet).get("ine.concept", ""))
    about_people = [e.metadata for e in embeddings if e.metadata.get("ine.people") == "true"]
    return concepts, [about["ine.rule"] for about in about_people if "ine.rule" in about]
