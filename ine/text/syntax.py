r"""Weights and escapes in prompts as users of UIs type them.

    (words)        1.1        [words]        1 / 1.1
    (words:1.3)    1.3        \( \) \[ \] \\    the character itself

The grammar is that of AUTOMATIC1111's web UI, which ComfyUI shares but for square brackets
(literal there). Nested brackets multiply. As there, a bracket that is never closed acts to the
end of the prompt, and one that was never opened is a letter. Prompt editing ("[cat:dog:0.5]"),
"AND" and "BREAK" are not known: they are read as words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

BRACKET = 1.1
"""What a pair of round brackets without a number multiplies by; square ones divide."""

MOST_WEIGHT = 1e6
"""Beyond it, upwards or downwards, a weight is cut: 145 brackets in one another."""

MOST_PRODUCT = 1e150
"""Likewise of round brackets alone, or square ones: 3600 in one another. Two are still finite."""

SYMBOLS = re.compile(
    r"\\[\\()\[\]]|[()\[\]]"
    r"|:\s*+(?P<weight>[+-]?(?:\d++\.?+\d*+|\.\d++))\s*+\)"
    r"|[^\\()\[\]:]+|[\\:]"
)
"""Cuts a prompt into escapes, brackets, ":1.3)" and what lies between; nothing is left over.

The "+" behind a "+" or "*" is possessive: a text of a million digits is gone through once."""


Span = tuple[int, int, float]
"""(first piece, last piece, factor) of a pair of brackets."""


@dataclass(frozen=True)
class Piece:
    """Text that has one weight."""

    text: str
    """As it is tokenised: brackets, weights and escaping backslashes are gone."""

    weight: float = 1.0


def read_weights(prompt: str) -> tuple[Piece, ...]:
    """Return the pieces of a prompt in order, those without text left out.

    A prompt without brackets and backslashes is one piece, itself. Where a bracket opens or
    closes a new piece begins, so "x(fire-neg)" has the word "fire-neg" in it. Any text can be
    read, in time that grows with its length; weights stay within `MOST_WEIGHT`.
    """
    texts = [""]
    opened: dict[str, list[int]] = {"(": [], "[": []}
    spans: dict[str, list[Span]] = {"(": [], "[": []}

    def cut() -> None:
        texts.append("")

    def close(bracket: str, factor: float) -> None:
        # Pieces from the first to the last are in the brackets.
        spans[bracket].append((opened[bracket].pop(), len(texts) - 1, factor))

    for found in SYMBOLS.finditer(prompt):
        symbol, weight = found[0], found["weight"]
        if symbol in opened:
            cut()
            opened[symbol].append(len(texts) - 1)
        elif symbol == "]" and opened["["]:
            close("[", 1 / BRACKET)
            cut()
        elif (symbol == ")" or weight) and opened["("]:
            close("(", float(weight) if weight else BRACKET)
            cut()
        else:
            texts[-1] += symbol[1:] if len(symbol) == 2 and symbol[0] == "\\" else symbol
    for bracket, factor in (("(", BRACKET), ("[", 1 / BRACKET)):
        while opened[bracket]:
            close(bracket, factor)
    products = (_products(found, len(texts)) for found in spans.values())
    weights = (_within(up * down, MOST_WEIGHT) for up, down in zip(*products, strict=True))
    return tuple(Piece(t, w) for t, w in zip(texts, weights, strict=True) if t)


def _products(spans: Sequence[Span], count: int) -> list[float]:
    """Return for each of `count` pieces the product of the factors of all spans that it is in.

    Args:
        spans: Nested in one another, the inner ones first.
        count: Number of pieces.

    Each piece and span is looked at once, so that thousands of brackets in one another take no
    longer than beside one another.
    """
    # A piece begins where one bracket opens, so no two spans have the same first piece.
    starts = {first: (last, factor) for first, last, factor in spans}
    made, inside = [], [(count, 1.0)]
    for place in range(count):
        while inside[-1][0] < place:
            inside.pop()
        if place in starts:
            last, factor = starts[place]
            inside.append((last, _within(inside[-1][1] * factor, MOST_PRODUCT)))
        made.append(inside[-1][1])
    return made


def _within(number: float, most: float) -> float:
    return max(-most, min(most, number))


def plain_text(prompt: str) -> str:
    """Return the words of a prompt, weights and escapes gone.

    Brackets leave a blank, since words on either side of one are words of their own.
    """
    return " ".join(piece.text.strip() for piece in read_weights(prompt) if piece.text.strip())


def is_weighted(prompt: str) -> bool:
    """Return whether some words of a prompt have a weight other than 1."""
    return any(piece.weight != 1.0 for piece in read_weights(prompt))
