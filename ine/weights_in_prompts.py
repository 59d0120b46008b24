r"""Weights and escapes in prompts as users of UIs type them.

    (words)        1.1        [words]        1 / 1.1
    (words:1.3)    1.3        \( \) \[ \] \\    the character itself

The grammar is that of AUTOMATIC1111's web UI, which ComfyUI shares but for square brackets
(literal there). Nested brackets multiply. As there, a bracket that is never closed acts to the
end of the prompt, and one that was never opened is a letter. Prompt editing ("[cat:dog:0.5]"),
"AND" and "BREAK" are not known: they are read as words.
"""

import re
from dataclasses import dataclass

BRACKET = 1.1
"""What a pair of round brackets without a number multiplies by; square ones divide."""

SYMBOLS = re.compile(
    r"\\[\\()\[\]]|[()\[\]]|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|[\\:]"
)
"""Cuts a prompt into escapes, brackets, ":1.3)" and what lies between; nothing is left over."""


@dataclass(frozen=True)
class Piece:
    """Text that has one weight."""

    text: str
    """As it is tokenised: brackets, weights and escaping backslashes are gone."""

    weight: float = 1.0


def read_weights(prompt):
    """Return the pieces of a prompt in order, those without text left out.

    A prompt without brackets and backslashes is one piece, itself. Where a bracket opens or
    closes a new piece begins, so "x(fire-neg)" has the word "fire-neg" in it.

    Returns:
        tuple[Piece, ...]
    """
    texts, weights = [""], [1.0]
    opened = {"(": [], "[": []}

    def multiply(first, factor):
        for place in range(first, len(weights)):
            weights[place] *= factor

    def cut():
        texts.append("")
        weights.append(1.0)

    for found in SYMBOLS.finditer(prompt):
        symbol, weight = found[0], found["weight"]
        if symbol in opened:
            cut()
            opened[symbol].append(len(texts) - 1)
        elif symbol == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / BRACKET)
            cut()
        elif (symbol == ")" or weight) and opened["("]:
            multiply(opened["("].pop(), float(weight) if weight else BRACKET)
            cut()
        else:
            texts[-1] += symbol[1:] if len(symbol) == 2 and symbol[0] == "\\" else symbol
    for first in opened["("]:
        multiply(first, BRACKET)
    for first in opened["["]:
        multiply(first, 1 / BRACKET)
    return tuple(Piece(t, w) for t, w in zip(texts, weights, strict=True) if t)


def plain_text(prompt):
    """Return the words of a prompt, weights and escapes gone.

    Brackets leave a blank, since words on either side of one are words of their own.
    """
    return " ".join(piece.text.strip() for piece in read_weights(prompt) if piece.text.strip())


def is_weighted(prompt):
    """Return whether some words of a prompt have a weight other than 1."""
    return any(piece.weight != 1.0 for piece in read_weights(prompt))
