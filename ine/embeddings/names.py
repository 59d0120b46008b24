"""Check names of triggers that user interfaces can find, without loading a model."""

import json
import re
from collections.abc import Set
from functools import cache
from typing import Any

from ine.errors import EmbeddingError
from ine.models.clip_tokenizer import clip_merges
from ine.models.parts import MINI_FOLDER

TRIGGER = re.compile(r"[a-z][a-z0-9_-]*[a-z]")
PLAIN = re.compile("[a-z]{2,}")


def check_trigger(name: str, tokenizer: Any = None) -> None:
    """Raise `EmbeddingError` for a trigger that some UI would misread.

    Args:
        name: Lower-case letters, digits, `_` and `-`; begins and ends with a letter.
        tokenizer: If given, the name must not be one of its tokens: a UI would replace that word
            in every prompt, or refuse the file.
    """
    if not TRIGGER.fullmatch(name):
        slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower())
        slug = re.sub(r"^[^a-z]+|[^a-z]+$", "", slug)
        example = slug if TRIGGER.fullmatch(slug) else "my-negative"
        raise EmbeddingError(
            f"trigger {name!r}: must be lower-case letters, digits, '_' and '-', and begin and "
            f"end with a letter, or some UIs will not find it; for example {example!r}"
        )
    if tokenizer is not None:
        check_outside(name, tokenizer.get_vocab().keys())


def check_outside(name: str, vocabulary: Set[str]) -> None:
    """Raise `EmbeddingError` for a trigger that is in a set of tokens or words."""
    if {name, f"{name}</w>"} & vocabulary:
        raise EmbeddingError(
            f"trigger {name!r}: is a token of the model's vocabulary, so it would replace that "
            f"word in every prompt; for example 'ine-{name}'"
        )


def check_name(name: str, family: str) -> None:
    """Raise `EmbeddingError` for a trigger that some UI would misread on a family's models.

    Args:
        name: See `check_trigger`.
        family: The embedding's: "sd1", "sd2", "sdxl", "mini", ...; the name must not be in its
            vocabulary.
    """
    check_trigger(name)
    check_outside(name, vocabulary(family))


@cache
def vocabulary(family: str) -> frozenset[str]:
    """Return the tokens of a family's text encoders that could be triggers.

    SD 1.x, SD 2.x and both encoders of SDXL have CLIP's vocabulary. Its merges never cross from
    letters to digits or signs, so all of these are plain letters.
    """
    if family == "mini":
        tokens = json.loads((MINI_FOLDER / "tokenizer" / "tokenizer.json").read_text())
        return frozenset(tokens["model"]["vocab"])
    words = ("".join(pair).removesuffix("</w>") for pair in clip_merges())
    return frozenset(word for word in words if PLAIN.fullmatch(word))
