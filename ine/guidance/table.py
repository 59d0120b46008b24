"""Guidance methods by the name a user types; a new method is one class and one row here."""

from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree

GUIDANCE = {
    "cfg": lambda negative, strength: ClassifierFree(negative),
    "additive": Additive,
}
"""Name -> function of (Negative, strength or None) that returns a `Guidance`."""
