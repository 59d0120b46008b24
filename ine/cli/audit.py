"""`ine audit`: attack one's own defence, add what was found, and attack again."""

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
@click.option("--negative-prompt", default="", metavar="TEXT", help="Negative text of the defence.")
@click.option(
    "--negative-embedding",
    "embedding_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Embedding of the defence; may be repeated.",
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
    "--rounds",
    type=click.IntRange(1, 25),
    default=3,
    show_default=True,
    help="How often what was found is added, at most.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of pictures with the concept at which the audit ends.",
)
@click.option(
    "--count",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="Pictures by which an attack, and preservation, is measured.",
)
@click.option(
    "--judge",
    "judge_name",
    metavar="DETECTOR",
    help="Detector that looks, instead of the recipe's rule's own.",
)
@click.option(
    "--flagged",
    "blur",
    type=click.Choice(["click", "hide", "show"]),
    help="Flagged pictures: blurred until clicked, not in the file, or shown (click; hide for "
    "recipes about people).",
)
@options.seed
@options.overrides
@options.sampling
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ine-audit"),
    show_default=True,
    help="Folder for the report, the embeddings found, and what a run resumes from.",
)
@options.device
@options.dtype
@options.json_output
def audit(
    concept,
    negative_prompt,
    embedding_files,
    unet,
    model,
    images,
    rounds,
    threshold,
    count,
    judge_name,
    blur,
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
    """Attack a defence by inverting the concept through it; add what was found; attack again.

    The options of the defence are those of `ine generate`; the budget of an attack is the recipe's
    inversion (--set inversion.steps=N, inversion.vectors=N). It ends when no attack recovers more
    than --threshold, or after --rounds. An interrupted audit goes on where it stopped.

    The embeddings found bring the concept back where they are used as a prompt: keep those of real
    harms private.
    """
    from ine.attacks.audit import AuditSettings, audit, write_audit
    from ine.embedding import read_embedding, tell_fits
    from ine.judging.detectors import load_detector
    from ine.judging.rules import find_rule
    from ine.recipe import load_recipe

    recipe = load_recipe(concept, overrides)
    settings = AuditSettings(
        rounds=rounds, threshold=threshold, pictures=count, benign=count, seed=seed
    )
    embeddings = tuple(read_embedding(path) for path in embedding_files)
    rule = find_rule(recipe.pictures.rule)
    detector = load_detector(judge_name or rule.detector)
    choose.check_unet(unet)
    name, source = choose.base_name(model, embeddings, recipe=recipe, unet=unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet)
    tell_fits(embeddings, parts)
    if not unet:
        log.warning("no --unet: the base model is audited, which still knows the concept's words")
    sampler = choose.sampler(parts, scheduler, steps, guidance_scale, batch)
    guidance = guidance_of(parts, sampler, embeddings, negative_prompt, guided)
    pictures = choose.attacker_pictures(base, recipe, out, seed, images)
    inversions = rounds + 2  # the control, and one attack on the defence of every round
    with bar(inversions * recipe.inversion.steps, "audit") as update:
        passed = {}

        def tell(what, done, of):
            if what.startswith("attack"):
                passed[what] = done
            update(sum(passed.values()), now=what)

        found = audit(
            parts, recipe, pictures, guidance, sampler, rule, detector, out, settings, tell
        )
    about = {
        "model": f"{parts.name}, U-Net {parts.unet_name}",
        "sampler": repr(sampler),
        "rule": f"{rule.name}, looked at by {judge_name or rule.detector}",
        "pictures of the attacker": f"{pictures.count}, {images or 'made by the base model'}",
    }
    blur = blur or ("hide" if recipe.people else "click")
    page = write_audit(found, recipe, guidance, settings, about, out, blur)
    log.warning(
        "used as a prompt, the embeddings found bring the concept back: keep those of real harms "
        "private"
    )
    if as_json:
        click.echo((out / "audit.json").read_text(), nl=False)
        return
    for one in found:
        click.echo(f"round {one.number}: {len(one.negatives)} negatives")
        for attack in one.attacks:
            click.echo(f"  {attack.name}: {_share(attack.recovered)}")
        left = "" if one.left is None else f", left on tuning prompts {one.left.value:.2f}"
        click.echo(f"  benign preservation {one.kept.value:.3f}{left}")
    click.echo(f"report: {page}")


def _share(rate):
    return f"{rate.share:.2f} ({rate.low:.2f} to {rate.high:.2f}, N = {rate.trials})"
