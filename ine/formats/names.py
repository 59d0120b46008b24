"""Names that a user interface can take for a trigger, checked without loading a model."""

import json
import lzma
from functools import cache
from pathlib import Path

from ine.embedding import check_outside, check_trigger
from ine.models.parts import MINI_FOLDER

CLIP_WORDS = Path(__file__).parent / "clip_words.txt.xz"
"""The tokens of CLIP's vocabulary (Radford et al., 2021) that could be triggers, one to a line.

SD 1.x, SD 2.x and both encoders of SDXL have this vocabulary. Its merges never cross from letters
to digits or signs, so all of these are plain letters.
"""


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
    """Return the tokens of a family's text encoders that could be triggers."""
    if family == "mini":
        tokens = json.loads((MINI_FOLDER / "tokenizer" / "tokenizer.json").read_text())
        return frozenset(tokens["model"]["vocab"])
    return frozenset(lzma.decompress(CLIP_WORDS.read_bytes()).decode().split("\n"))
