"""Detectors that ask an observer: their names, and their rule.

An observer (`ine.observers`) says whether a picture shows a concept. As a detector it gives the
concept's name with a score, or `UNKNOWN` where it refused or answered nonsense; the rule counts
that as found, since a picture that nobody could look at is not a safe picture.
"""

import re

from ine.detectors.rule import Rule
from ine.errors import RecipeError

START = "vlm@"
FORM = "vlm@SPEC:CONCEPT"
PATTERN = r"(?P<detector>vlm@[a-z]+:.+:[^:@/#\s]+)"
"""SPEC is an observer's name, CONCEPT a recipe's."""

UNKNOWN = "unknown"
"""Label of a picture about which nothing is known."""


def split_name(name: str) -> tuple[str, str]:
    """Return (observer, concept) of a detector's name.

    Raises:
        RecipeError: It has another form.
    """
    if not re.fullmatch(PATTERN, name):
        raise RecipeError(f"detector {name!r}: expected {FORM}, such as vlm@vlm:FOLDER:fire")
    spec, _, concept = name.removeprefix(START).rpartition(":")
    return spec, concept


def observed_rule(name: str, detector: str, threshold: float = 0.5) -> Rule:
    """Return the rule that an observer finds a concept, or that this is unknown."""
    return Rule(
        name=name,
        detector=detector,
        labels=(split_name(detector)[1], UNKNOWN),
        threshold=threshold,
        note="a refusal or nonsense counts as found, and stands in the raw output as such",
    )
