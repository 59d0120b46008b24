"""Which pictures must not be shown: those of concepts about people that a rule flags."""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ine.detectors.rules import find_rule
from ine.detectors.table import load_detector
from ine.gallery.index import SHEET
from ine.recipe import list_recipes, load_recipe

log = logging.getLogger("ine")

Flagger = Callable[[np.ndarray], list[bool | None]]
"""Pictures, uint8 (B, H, W, 3), to one of True, False and None (not known) for each."""


def flagger_for(concepts: Iterable[str], rules: Sequence[str] = ()) -> Flagger | None:
    """Return a function that finds pictures that must not be shown.

    Args:
        concepts: Names of concepts, or of embeddings of them ("nudity-neg"); shipped recipes
            about people (`people: true`) bring their rule.
        rules: Names of further rules, such as those that a user's own embeddings state.

    If a rule or a detector cannot be loaded, every picture counts as not known.

    Returns:
        None if no concept is about people; else a function from pictures (B, H, W, 3) uint8
        to one of True, False and None (not known) for each.
    """
    shipped = list_recipes()
    named = dict.fromkeys(c.removesuffix("-neg") for c in concepts)
    recipes = [load_recipe(shipped[c]) for c in named if c in shipped]
    names = dict.fromkeys([*(r.pictures.rule for r in recipes if r.people), *rules])
    if not names:
        return None
    try:
        found = [find_rule(name) for name in names]
        looks = [(rule, load_detector(rule.detector)) for rule in found]
    except Exception as error:  # A detector's libraries may raise anything; then nothing is shown.
        log.warning("%s; all pictures of %s are blurred", error, SHEET)
        return lambda pictures: [None] * len(pictures)

    def flags(pictures: np.ndarray) -> list[bool | None]:
        fired = [[rule.fires(s) for s in detector(pictures)] for rule, detector in looks]
        return [any(column) for column in zip(*fired, strict=True)]

    return flags
