"""Options of `ine unlearn` about a method, and the settings that they give."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.choices import GROUPS, VARIANTS
from ine.cli.command import expert
from ine.cli.param_types import Finite

if TYPE_CHECKING:
    from ine.recipe import ConceptRecipe

log = logging.getLogger("ine")

erasing = options.together(
    expert(
        "--erase-scale",
        type=options.FiniteRange(min=0, min_open=True),
        help="uce: weight of the erased tokens.",
    ),
    expert(
        "--preserve-scale",
        type=options.FiniteRange(min=0),
        help="uce: weight of the preserved tokens.",
    ),
    expert(
        "--ridge",
        type=options.FiniteRange(min=0, min_open=True),
        help="uce: weight of keeping the original values.",
    ),
    expert(
        "--variant",
        type=click.Choice(VARIANTS),
        help="uce: which tokens are edited: sequence (ours, the default), paper (as for the "
        "published models) or last-token.",
    ),
    expert(
        "--group",
        type=click.Choice(GROUPS),
        help="esd: which parameters are trained.",
    ),
    expert(
        "--negative-guidance",
        type=Finite(),
        help="esd: eta, 1 as in the paper; what esd_sd.py calls negative_guidance, less 1.",
    ),
    expert(
        "--beta",
        type=options.FiniteRange(min=0, min_open=True),
        help="duo: how close to stay to the base; smaller unlearns more (2000, 1000, 500, 250, "
        "100).",
    ),
    expert("--pairs", type=click.IntRange(1), help="duo: pairs of pictures to learn from."),
    expert(
        "--pairs-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="duo: folder that keeps the pairs for other runs; without it, they are removed.",
    ),
    expert("--rank", type=click.IntRange(1), help="duo: rank of the LoRA."),
    expert(
        "--prior-weight",
        type=options.FiniteRange(min=0),
        help="duo: weight of keeping the prediction on pure noise; default from beta.",
    ),
    expert("--iterations", type=click.IntRange(1), help="esd, duo: optimiser steps."),
    expert(
        "--lr",
        type=options.FiniteRange(min=0, min_open=True),
        help="esd, duo: learning rate; duo's default from beta.",
    ),
    expert("--batch", type=click.IntRange(1), help="esd, duo: pictures or pairs per step."),
)
"""The options of all methods."""

METHOD_OPTIONS = {
    "uce": ("erase_scale", "preserve_scale", "ridge", "variant"),
    "esd": ("group", "iterations", "lr", "batch", "negative_guidance"),
    "duo": (
        *("beta", "pairs", "pairs_dir", "rank", "prior_weight"),
        *("iterations", "lr", "batch"),
    ),
}
"""Method -> the options that it has."""


def method_settings(method: str, recipe: "ConceptRecipe", given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a method: those of the recipe, replaced by options that are given.

    Raises:
        click.UsageError: An option of another method was given.
    """
    wrong = [k for k, v in given.items() if v is not None and k not in METHOD_OPTIONS[method]]
    if wrong:
        names = ", ".join("--" + k.replace("_", "-") for k in wrong)
        raise click.UsageError(f"{names}: not an option of method {method}")
    section = dict((getattr(recipe.erase, method, None) if recipe.erase else None) or {})
    given = {k: v for k, v in given.items() if v is not None}
    if method == "uce" and given.get("variant", section.get("variant")) != section.get("variant"):
        section = _of_variant(section, given["variant"])
    return section | given


def _of_variant(section: dict[str, Any], variant: str) -> dict[str, Any]:
    """Return a recipe's UCE settings without the strengths, which suit its own variant only."""
    left = [key for key in ("erase_scale", "preserve_scale", "ridge") if key in section]
    if left and variant != section.get("variant", "sequence"):
        log.info(
            "note: %s of the recipe belong to another variant; those of %s are used",
            ", ".join(left),
            variant,
        )
        return {key: value for key, value in section.items() if key not in left}
    return section
