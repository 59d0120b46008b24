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
    type=click.Choice(["uce", "esd"]),
    default="uce",
    show_default=True,
    help="uce: closed form, seconds. esd: fine-tuning, minutes and more.",
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
@click.option("--iterations", type=click.IntRange(1), help="esd: optimiser steps.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="esd: learning rate.")
@click.option("--batch", type=click.IntRange(1), help="esd: pictures per step.")
@click.option("--negative-guidance", type=float, help="esd: eta.")
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
    from ine.unlearning.pairs import erase_texts
    from ine.unlearning.run import check_settings, unlearn_concept

    resolved = asdict(check_settings(recipe, method, settings))
    texts = erase_texts(recipe)
    if dry_run:
        counts = {what: len(prompts) for what, prompts in asdict(texts).items()}
        plan = {"base": name, "out": str(out), method: resolved, "prompts": counts}
        click.echo(json.dumps(plan, indent=2))
        return
    base = choose.load_base(name, source, device, dtype)
    with bar(resolved.get("iterations", 1), method) as update:
        summary = unlearn_concept(
            base,
            recipe,
            method,
            settings,
            out,
            seed=seed,
            force=force,
            on_step=lambda step, loss: update(step, loss=f"{loss:.4f}"),
        )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    click.echo(f"wrote {out}: {summary['tensors']} tensors changed by {method}")
    on = f" --model {model}" if model else ""
    click.echo(f"go on: ine invert --concept {concept}{on} --unet {out}")


METHOD_OPTIONS = {
    "uce": ("erase_scale", "preserve_scale", "ridge", "variant"),
    "esd": ("group", "iterations", "lr", "batch", "negative_guidance"),
}


def method_settings(method, recipe, given):
    """Return the settings that a method is to use: recipe, then options over it.

    Raises:
        click.UsageError: An option of the other method was given.
    """
    wrong = [k for k, v in given.items() if v is not None and k not in METHOD_OPTIONS[method]]
    if wrong:
        names = ", ".join("--" + k.replace("_", "-") for k in wrong)
        raise click.UsageError(f"{names}: not an option of method {method}")
    section = getattr(recipe.erase, method, None) if recipe.erase else None
    return dict(section or {}) | {k: v for k, v in given.items() if v is not None}
