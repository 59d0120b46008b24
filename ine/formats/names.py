"""Names that a user interface can take for a trigger, checked without loading a model."""

import json
import re
from functools import cache

from ine.embedding import check_outside, check_trigger
from ine.models.clip_tokenizer import clip_merges
from ine.models.parts import MINI_FOLDER

PLAIN = re.compile("[a-z]{2,}")


def check_name(name, family):
    """Raise `EmbeddingError` for a trigger that some UI would misread.

    Args:
        name: See `ine.embedding.check_trigger`.
        family: Of the embedding: "sd1", "sd2", "sdxl", "mini", ...; says which vocabulary the
            name must be outside of.
    """
    check_trigger(name)
    check_outside(name, vocabulary(family))


@cache
def vocabulary(family):
    """Return the tokens of a family's text encoders that could be triggers.

    SD 1.x, SD 2.x and both encoders of SDXL have CLIP's vocabulary. Its merges never cross from
    letters to digits or signs, so all of these are plain letters.
    """
    if family == "mini":
        tokens = json.loads((MINI_FOLDER / "tokenizer" / "tokenizer.json").read_text())
        return frozenset(tokens["model"]["vocab"])
    words = ("".join(pair).removesuffix("</w>") for pair in clip_merges())
    return frozenset(word for word in words if PLAIN.fullmatch(word))
