"""`ine attack`: make adversarial prompts, to measure a defence by."""

import json
import logging
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.guiding import guidance_of, guiding
from ine.cli.progress import bar

log = logging.getLogger("ine")


@click.command()
@click.option(
    "--concept", required=True, metavar="NAME|FILE", help="A shipped recipe's name or a YAML file."
)
@click.option(
    "--method",
    type=click.Choice(["embedding", "text", "denoising"]),
    default="denoising",
    show_default=True,
    help="embedding: vectors, inverted. text: words whose text states come near the concept's. "
    "denoising: words by which the model denoises pictures of the concept.",
)
@click.option(
    "--negative-prompt",
    default="",
    metavar="TEXT",
    help="Negative text of the defence, where the attacker knows it.",
)
@click.option(
    "--negative-embedding",
    "embedding_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Embedding of the defence, where the attacker knows it; may be repeated.",
)
@guiding
@options.unet
@options.model
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures of the concept that the attacker has; without it the base model makes them.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts to put words before, as `ine generate` reads them; else what the recipe's "
    "erasers aim at, such as a plain object.",
)
@click.option(
    "--limit", type=click.IntRange(1), default=8, show_default=True, help="Prompts, at most."
)
@click.option("--together", is_flag=True, help="One phrase for all prompts.")
@click.option("--tokens", type=click.IntRange(1), default=5, show_default=True, help="Words.")
@click.option(
    "--budget",
    type=click.IntRange(1),
    default=10000,
    show_default=True,
    help="Evaluations a phrase may cost: of the U-Net, or of the text encoder (text).",
)
@click.option(
    "--proposals",
    type=click.Choice(["gradient", "genetic"]),
    help="How words are proposed; by default as the method's authors do.",
)
@click.option(
    "--allow-words", is_flag=True, help="Words of the recipe for the concept may be used too."
)
@click.option(
    "--direction",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="text: how far to go along the concept's direction.",
)
@options.seed
@options.overrides
@options.sampling
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ine-attack"),
    show_default=True,
    help="Folder for prompts.jsonl, and what a run resumes from.",
)
@options.device
@options.dtype
@options.json_output
def attack(
    concept,
    method,
    negative_prompt,
    embedding_files,
    unet,
    model,
    images,
    prompts,
    limit,
    together,
    tokens,
    budget,
    proposals,
    allow_words,
    direction,
    seed,
    overrides,
    steps,
    scheduler,
    guidance_scale,
    batch,
    out,
    device,
    dtype,
    as_json,
    **guided,
):
    """Make adversarial prompts against a model, or against a defence that the attacker knows.

    Without a negative the bare model is attacked; with one, every prediction is that of the
    defended sampler. prompts.jsonl says of each prompt what it was made against and at which
    budget, and `ine evaluate` reads it as a prompt set.

    It is for measuring one's own defences. Sets and embeddings of real harms bring them back: keep
    them private.
    """
    from ine.attacks.prediction import Victim
    from ine.attacks.run import (
        METHODS,
        Attacker,
        invert_prompts,
        search_prompts,
        write_set,
    )
    from ine.attacks.search import SearchSettings
    from ine.embedding import read_embedding, tell_fits
    from ine.recipe import load_recipe

    recipe = load_recipe(concept, overrides)
    settings = None
    if method != "embedding":
        settings = SearchSettings(
            tokens=tokens, budget=budget, proposals=proposals or METHODS[method]
        )
    rows = _rows(recipe, prompts, limit, seed) if settings else ()
    embeddings = tuple(read_embedding(path) for path in embedding_files)
    choose.check_unet(unet)
    name, source = choose.base_name(model, embeddings, recipe=recipe, unet=unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet)
    tell_fits(embeddings, parts)
    sampler = choose.sampler(parts, scheduler, steps, guidance_scale, batch)
    known = bool(embeddings or negative_prompt)
    guidance = guidance_of(parts, sampler, embeddings, negative_prompt, guided) if known else None
    if not known:
        log.info("no negative: the attacker knows of no defence")
    trigger = f"{recipe.name}-attack"
    attacker = Attacker(
        victim=Victim(parts, sampler, guidance),
        base=base,
        recipe=recipe,
        pictures=choose.attacker_pictures(base, recipe, out, seed, images),
        folder=out,
        seed=seed,
    )
    file = None
    if settings is None:
        with bar(recipe.inversion.steps, "inversion") as update:
            file, found = invert_prompts(
                attacker, trigger, limit, lambda p: update(p.step, loss=f"{p.loss:.3f}")
            )
    else:
        with bar(settings.budget * (1 if together else len(rows)), "search") as update:

            def tell(group, _groups, now):
                update(group * settings.budget + now.spent, loss=f"{now.trace[-1][1]:.3f}")

            found = search_prompts(
                attacker,
                method,
                rows,
                settings,
                together=together,
                allow_words=allow_words,
                direction=direction,
                tell=tell,
            )
    path = out / "prompts.jsonl"
    write_set(path, found)
    log.warning("adversarial prompts of real harms bring them back: keep them private")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for phrase in dict.fromkeys(row["phrase"] for row in found):
        click.echo(phrase)
    also = f", and {file}" if file else ""
    click.echo(f"wrote {len(found)} prompts to {path}{also}")
    learned = f", embeddings: {file}" if file else ""
    click.echo(
        "measure it: in a grid of `ine evaluate`, prompts: "
        f"- {{name: attack, source: {path}, role: test, expects: harmful{learned}}}"
    )


def _rows(recipe, prompts, limit, seed):
    """Return (prompt, noun) pairs to attack."""
    from ine.attacks.run import plain_prompts

    if prompts is None:
        return plain_prompts(recipe, limit, seed)
    rows = choose.read_prompt_rows((), prompts)[:limit]
    return [(row.prompt, row.extra.get("noun", "")) for row in rows]
