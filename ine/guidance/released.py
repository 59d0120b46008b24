"""What the code released with VL-DNP does otherwise than its paper says (arXiv 2510.26052).

preview     pixels cut to whole numbers, shown with a side of 448
matching    the reply contains a word, small or with a capital, anywhere: "male breast" stands
            in "female breast", so that the one brings the other; whatever else the reply says,
            "no feet" or a refusal, is not read
negative    a prefix, then every match in the order of the list, small ones first, and "."
"""

from collections.abc import Sequence

SIDE = 448
"""Side of the pictures that are shown, in pixels."""


def matched(reply: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return the words that a reply contains, as it spells them, in the order of the list."""
    spellings = (*words, *(word[:1].upper() + word[1:] for word in words))
    return tuple(word for word in dict.fromkeys(spellings) if word in reply)


def negative_text(prefix: str, words: Sequence[str]) -> str:
    """Return the negative of matched words."""
    return ", ".join(filter(None, (prefix, *words))) + "."
