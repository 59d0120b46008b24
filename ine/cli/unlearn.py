"""`ine unlearn`: make an unlearned model where none is published."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.progress import bar

log = logging.getLogger("ine")


@click.command()
@click.option(
    "--concept", required=True, metavar="NAME|FILE", help="A shipped recipe's name or a YAML file."
)
@click.option(
    "--method",
    type=click.Choice(["uce", "esd", "duo"]),
    default="uce",
    show_default=True,
    help="uce: closed form, seconds. esd: fine-tuning, minutes and more. duo: a LoRA that learns "
    "to prefer pictures without the concept.",
)
@options.model
@options.out
@options.force
@options.seed
@options.overrides
@click.option(
    "--erase-scale",
    type=click.FloatRange(min=0, min_open=True),
    help="uce: weight of the erased tokens.",
)
@click.option(
    "--preserve-scale", type=click.FloatRange(min=0), help="uce: weight of the preserved."
)
@click.option(
    "--ridge", type=click.FloatRange(min=0, min_open=True), help="uce: weight of staying as it is."
)
@click.option(
    "--variant", type=click.Choice(["sequence", "last-token"]), help="uce: which tokens are edited."
)
@click.option(
    "--group",
    type=click.Choice(["x", "x-strict", "u", "all"]),
    help="esd: which parameters are trained.",
)
@click.option("--negative-guidance", type=float, help="esd: eta.")
@click.option(
    "--beta",
    type=click.FloatRange(min=0, min_open=True),
    help="duo: how closely the base is held to; smaller unlearns more (2000, 1000, 500, 250, 100).",
)
@click.option("--pairs", type=click.IntRange(1), help="duo: pairs of pictures to learn from.")
@click.option(
    "--pairs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="duo: where pairs are kept for runs with other settings; otherwise they are removed.",
)
@click.option("--rank", type=click.IntRange(1), help="duo: rank of the LoRA.")
@click.option(
    "--prior-weight",
    type=click.FloatRange(min=0),
    help="duo: weight of staying as it is on pure noise, from beta unless given.",
)
@click.option("--iterations", type=click.IntRange(1), help="esd, duo: optimiser steps.")
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    help="esd, duo: learning rate, duo's from beta unless given.",
)
@click.option("--batch", type=click.IntRange(1), help="esd, duo: pictures or pairs per step.")
@options.device
@options.dtype
@options.dry_run
@options.json_output
def unlearn(
    concept, method, model, out, force, seed, overrides, device, dtype, dry_run, as_json, **given
):
    """Erase a recipe's concept from its base model; write the weights that changed.

    Settings that are not given come from the recipe's `erase` section where it names them, else
    from the method's published defaults.
    """
    from ine.files import check_free
    from ine.recipe import load_recipe

    recipe = load_recipe(concept, overrides)
    name, source = choose.base_name(model, recipe=recipe)
    out = Path(out or f"{recipe.name}-{method}.safetensors")
    check_free(out, force)
    settings = method_settings(method, recipe, given)
    pairs_dir = settings.pop("pairs_dir", None)
    from ine.unlearning.pairs import erase_texts
    from ine.unlearning.run import check_settings, unlearn_concept

    resolved = asdict(check_settings(recipe, method, settings))
    texts = erase_texts(recipe)
    if dry_run:
        counts = {what: len(prompts) for what, prompts in asdict(texts).items()}
        plan = {"base": name, "out": str(out), method: resolved, "prompts": counts}
        if method == "duo":
            plan |= _plan_of_pairs(recipe)
        click.echo(json.dumps(plan, indent=2))
        return
    more = {"detector": _detector(recipe), "pairs_dir": pairs_dir} if method == "duo" else {}
    base = choose.load_base(name, source, device, dtype)
    with (
        bar(resolved.get("pairs", 0), "pairs", quiet=method != "duo") as found,
        bar(resolved.get("iterations", 1), method) as update,
    ):
        summary = unlearn_concept(
            base,
            recipe,
            method,
            settings,
            out,
            seed=seed,
            force=force,
            on_step=lambda step, loss: update(step, loss=f"{loss:.4f}"),
            on_pairs=lambda count, wanted, made: found(count, pictures=made),
            **more,
        )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    if method == "duo":
        click.echo(
            f"pairs: {summary['pairs']}, found with {summary['pictures']} pictures and "
            f"{summary['edits']} edits"
        )
    click.echo(f"wrote {out}: {summary['tensors']} tensors changed by {method}")
    on = f" --model {model}" if model else ""
    click.echo(f"go on: ine invert --concept {concept}{on} --unet {out}")


def _detector(recipe):
    """Return the detector that looks for the concept; before the base, which may be a download."""
    from ine.judging.detectors import load_detector
    from ine.judging.rules import find_rule

    return load_detector(find_rule(recipe.pictures.rule).detector)


def _plan_of_pairs(recipe):
    """Return what a dry run says about the making of pairs."""
    from ine.errors import IneError
    from ine.judging.detectors import check_detector
    from ine.judging.rules import find_rule
    from ine.unlearning.duo_pairs import pair_prompts

    rule = find_rule(recipe.pictures.rule)
    try:
        check_detector(rule.detector)
        here = f"{rule.detector!r} is on this machine"
    except IneError as error:
        here = str(error)
    return {"pairs": {"prompts": len(pair_prompts(recipe)), "rule": rule.name, "detector": here}}


METHOD_OPTIONS = {
    "uce": ("erase_scale", "preserve_scale", "ridge", "variant"),
    "esd": ("group", "iterations", "lr", "batch", "negative_guidance"),
    "duo": (
        *("beta", "pairs", "pairs_dir", "rank", "prior_weight"),
        *("iterations", "lr", "batch"),
    ),
}


def method_settings(method, recipe, given):
    """Return the settings that a method is to use: recipe, then options over it.

    Raises:
        click.UsageError: An option of another method was given.
    """
    wrong = [k for k, v in given.items() if v is not None and k not in METHOD_OPTIONS[method]]
    if wrong:
        names = ", ".join("--" + k.replace("_", "-") for k in wrong)
        raise click.UsageError(f"{names}: not an option of method {method}")
    section = getattr(recipe.erase, method, None) if recipe.erase else None
    return dict(section or {}) | {k: v for k, v in given.items() if v is not None}
