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
    help="Prompts: a text file with one a line, a csv, jsonl or json file, or a set such as "
    "mini:fire/benign (see `ine prompts`). Rows that bring a seed use it, unless --seed is given.",
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
@options.sampling
@options.clip_skip
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
    clip_skip,
    out,
    force,
    device,
    dtype,
    as_json,
    **guided,
):
    r"""Make pictures. The negative is text, embeddings, or both in one string.

    Prompts and negative may have weights, as UIs read them: (words:1.2), (words) for 1.1, [words]
    for 1/1.1; \( and \[ are brackets themselves. So "(fire-neg:1.3), blurry" works.

    Every picture has its own seed, in its name and inside it. A run that was interrupted goes
    on where it stopped. With an embedding or weights of a recipe about people, the contact sheet
    blurs what that recipe's detector flags; the pictures themselves stay as they are.
    """
    rows = choose.read_prompt_rows(given, prompts)
    texts = [row.prompt for row in rows]
    from ine.embedding import read_embedding, tell_fits
    from ine.gallery import GalleryPlan, fill_gallery, flagger_for
    from ine.guidance.table import describe
    from ine.models.fingerprint import exact_digest
    from ine.sampling import PictureRequest

    embeddings = tuple(read_embedding(path) for path in embedding_files)
    name, source = "mini", "no --model"
    if model or embeddings or unet:
        name, source = choose.base_name(model, embeddings, unet=unet)
    choose.check_unet(unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet, keep_base=False)
    tell_fits(embeddings, parts)
    sampler = choose.sampler(parts, scheduler, steps, guidance_scale, batch, clip_skip)
    method = guidance_of(parts, sampler, embeddings, negative_prompt, guided)
    requests = tuple(
        PictureRequest(prompt=row.prompt, seed=first + k)
        for row, first in zip(rows, _seeds(rows, seed), strict=True)
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
        **_reading_record(sampler.reading, [*texts, method.negative.prompt()]),
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


def _seeds(rows, seed):
    """Return the first seed of each row: its own, unless the user gave `--seed`; said aloud."""
    context = click.get_current_context()
    asked = context.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT
    own = sum(row.seed is not None for row in rows)
    if own and asked:
        log.info("seeds: %d for all prompts (--seed), not those of the file", seed)
    elif own:
        others = f", the others {seed}" if own < len(rows) else ""
        log.info("seeds: %d of %d prompts bring their own%s", own, len(rows), others)
    if any(row.guidance or row.width or row.height for row in rows):
        log.info("note: guidance and size in the prompt file are not used by this command")
    return [seed if asked or row.seed is None else row.seed for row in rows]


def _reading_record(reading, texts):
    """Return what of a `Reading` decides pixels of these texts; nothing where it is as if unset.

    So folders that were begun before prompts had weights are gone on with.
    """
    from ine.weights_in_prompts import Piece, read_weights

    record = {} if reading.clip_skip == 1 else {"clip_skip": reading.clip_skip}
    if any(read_weights(text) != (Piece(text),) for text in texts if text):
        record["prompt_weights"] = True
    return record


def _people(embeddings, unet):
    """Return (concepts, rules) by which pictures are flagged: what files say they are about."""
    from ine.models.checkpoints import weights_metadata

    concepts = [e.concept for e in embeddings]
    if unet:
        from ine.models.stack import layers_of

        # Of several files each may be about people.
        concepts += [weights_metadata(f.path).get("ine.concept", "") for f in layers_of(unet)]
    about_people = [e.metadata for e in embeddings if e.metadata.get("ine.people") == "true"]
    return concepts, [about["ine.rule"] for about in about_people if "ine.rule" in about]
