"""`ine calibrate`: set a gate's threshold from benign prompts."""

import json
import logging
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.progress import bar

log = logging.getLogger("ine")


@click.command()
@click.argument(
    "embedding_files",
    metavar="EMBEDDING...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@options.unet
@options.model
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Benign prompts: a file or a set, as `ine generate` reads them; without it, the recipe's "
    "set `benign`.",
)
@click.option(
    "--concept",
    metavar="NAME|FILE",
    help="Recipe with benign and tuning prompts; default the one that the embedding names.",
)
@click.option("--negative-prompt", default="", metavar="TEXT", help="Text beside the embeddings.")
@options.several
@click.option(
    "--gate",
    "gate_name",
    type=click.Choice(["presence", "posterior", "recognition"]),
    default="presence",
    show_default=True,
    help="What the gate looks at.",
)
@click.option(
    "--measure",
    type=click.Choice(["cosine", "residual"]),
    help="presence: how directions are compared (default cosine).",
)
@click.option(
    "--false-open",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    metavar="RATE",
    help="Share of benign pictures for which the gate may open.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    metavar="N",
    help="Benign pictures to watch (default twice what the rate needs, 200 for 0.01).",
)
@click.option(
    "--examples",
    type=click.IntRange(64),
    metavar="N",
    help="recognition: pictures of each kind to learn from (default 512).",
)
@click.option(
    "--base-examples",
    is_flag=True,
    help="recognition: learn from the base model's pictures of the concept too, for a concept of "
    "many faces.",
)
@options.seed
@options.sampling
@options.clip_skip
@options.out
@options.force
@options.device
@options.dtype
@options.json_output
def calibrate(
    embedding_files,
    unet,
    model,
    prompts,
    concept,
    negative_prompt,
    several,
    gate_name,
    measure,
    false_open,
    pictures,
    examples,
    base_examples,
    seed,
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
):
    """Set a gate's threshold from benign prompts, and write it beside the embedding.

    Benign pictures are begun undefended while the gate watches; its threshold is set so that it
    would open for the wanted share of them. How often it opens on the recipe's tuning prompts,
    which imply the concept, is told too: a gate that stays closed there defends nothing.
    Calibrate with the settings with which pictures will be made.

    --gate recognition first learns from pictures that the unlearned model draws with the
    embedding in the prompt and without it, as the recipe's detector tells them apart. What was
    drawn is kept in OUT.run as activations, so an interrupted run goes on.
    """
    if measure and gate_name != "presence":
        raise click.UsageError(f"--measure needs --gate presence: {gate_name}'s has none")
    from ine.embedding import read_embedding, tell_fits
    from ine.files import check_free
    from ine.guidance import calibrate as library
    from ine.guidance.negative import join_or_match
    from ine.sampling import sample_latents

    count = pictures or 2 * (library.fewest_pictures(false_open) + 1)
    library.threshold_for([0.0] * count, false_open)  # too few are refused before any work
    out = out or library.gate_path(embedding_files)
    check_free(out, force)
    embeddings = tuple(read_embedding(path) for path in embedding_files)
    negative = join_or_match(negative_prompt, embeddings, several)
    learning = gate_name == "recognition"
    for option, given in (("--examples", examples), ("--base-examples", base_examples)):
        if given and not learning:
            raise click.UsageError(f"{option} needs --gate recognition: {gate_name} learns nothing")
    recipe = _recipe(concept, embeddings, needed=prompts is None or learning)
    benign = _benign(prompts, recipe, count, seed, wide=learning)
    implying = _implying(recipe, min(count, 100), seed)

    name, source = choose.base_name(model, embeddings, recipe, unet)
    base = choose.load_base(name, source, device, dtype)
    parts = choose.lay(base, unet, keep_base=bool(base_examples))
    tell_fits(embeddings, parts)
    sampler = choose.sampler(parts, scheduler, steps, guidance_scale, batch, clip_skip)
    taught = {}
    if learning:
        drawer = base if base_examples else None
        settings = (sampler, examples or 512, seed, out, drawer)
        gate, taught = _taught(parts, recipe, embeddings, *settings)
    else:
        gate = library.GATES[gate_name](0.0, **({"measure": measure} if measure else {}))
    with bar(len(benign[0]) + len(implying[0]), "pictures") as update:
        settings = (negative, gate, sampler)
        scores = library.gate_scores(sample_latents, parts, *benign, *settings, update)
        tuning = library.gate_scores(
            sample_latents, parts, *implying, *settings, lambda n: update(len(scores) + n)
        )
    record = {
        "prompts": {
            "source": str(prompts.name) if prompts else f"recipe {recipe.name}, set benign",
            "distinct": len(set(benign[0])),
            "hash": library.prompts_hash(*benign),
        },
        **taught,
        "seed": seed,
        "sampler": library.sampler_record(sampler),
        **library.provenance(parts, embeddings, negative_prompt, several),
    }
    found = library.calibrated(gate, scores, false_open, record)
    found.record["open_on_tuning"] = library.open_share(found.gate, tuning) if tuning else None
    library.write_calibration(found, out, force)
    _tell(found, out, as_json)


def _taught(parts, recipe, embeddings, sampler, count, seed, out, base):
    """Return (a `Recognition` without a threshold, what the record says of its examples)."""
    from ine.embedding import fingerprints
    from ine.guidance.recognition import QUERIES, Recognition
    from ine.inversion.examples import teach_probes
    from ine.judging.detectors import load_detector
    from ine.judging.rules import find_rule

    rule = find_rule(recipe.pictures.rule)
    done = 0
    with bar((2 + bool(base)) * count, "examples") as update:

        def told(pictures):
            nonlocal done
            done += pictures
            update(done)

        probes, record = teach_probes(
            parts,
            recipe,
            embeddings,
            sampler,
            QUERIES,
            rule,
            load_detector(rule.detector),
            count=count,
            seed=seed,
            folder=out.with_name(out.name + ".run"),
            key=fingerprints(parts)["ine.unet_fingerprint"],
            told=told,
            base=base,
        )
    gate = Recognition(0.0, probes, QUERIES, recipe.name)
    return gate, {"examples": {**record, "rule": rule.name}}


def _tell(found, out, as_json):
    if as_json:
        click.echo(json.dumps({"out": str(out), **json.loads(out.read_text())}, indent=2))
        return
    benign, tuning = found.record["false_open"], found.record["open_on_tuning"]
    click.echo(f"threshold {found.gate.threshold:g}")
    click.echo(
        f"open on {benign['opened']} of {benign['pictures']} benign pictures "
        f"(wanted at most {benign['wanted']:g})"
    )
    if tuning:
        click.echo(f"open on {tuning['opened']} of {tuning['pictures']} of the tuning prompts")
        if not tuning["opened"]:
            log.warning(
                "the gate stays closed on all tuning prompts, so behind it nothing is defended; "
                "allow a larger --false-open, or try another --measure or --gate"
            )
    click.echo(f"wrote {out}")


def _recipe(concept, embeddings, needed):
    """Return the recipe of `--concept`, else that of the first embedding that names one."""
    from ine.errors import PromptError

    found = choose.recipe_of(concept, embeddings)
    if found is None and needed:
        raise PromptError(
            "no benign prompts: the embedding names no shipped recipe; give --prompts FILE or "
            "--concept NAME"
        )
    return found


def _benign(file, recipe, count, seed, wide=False):
    """Return (prompts, seeds) of the benign pictures; `wide` adds what erasers shall preserve."""
    from ine.errors import RecipeError
    from ine.inversion.examples import benign_templates, filled

    if file:
        return _spread(choose.read_prompts((), file), count, seed, "benign")
    templates = benign_templates(recipe) if wide else recipe.prompt_sets.get("benign")
    if not templates:
        raise RecipeError(
            f"recipe {recipe.name}: has no prompt_sets.benign; add it, or give --prompts FILE"
        )
    return _spread(filled(recipe, templates, recipe.prompt_nouns), count, seed, "benign")


def _implying(recipe, count, seed):
    """Return (prompts, seeds) of the recipe's tuning prompts; of none where it has none."""
    from ine.recipe import pairs

    if recipe is None or recipe.tuning is None:
        return [], []
    tuning = recipe.tuning
    filled = [recipe.fill(t, n) for t, n in pairs(tuning.prompts, tuning.nouns)]
    return _spread(filled, count, seed, "tuning")


def _spread(texts, count, seed, kind):
    """Return `count` prompts, repeated where there are fewer, and a seed for each."""
    from ine.inversion.preview import choose as choose_prompts
    from ine.runtime import seed_for

    # Seeds of their own: those of reported figures must stay fresh.
    seeds = [seed_for(seed, "calibrate", kind, i) % 2**32 for i in range(count)]
    return choose_prompts(texts, count, seed, "calibrate", kind), seeds
