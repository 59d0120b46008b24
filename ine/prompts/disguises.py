"""See through disguised words: a text becomes the words that a reader would see in it.

Seen through: upper case and accents, full-width and other styled letters (NFKC), look-alikes from
other alphabets, characters of no width, punctuation inside words, spaced letters, digits and signs
for letters, drawn-out letters. The work is linear in the length of a text.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

LOOKALIKES = {
    "a": "\u0430\u0251\u03b1\u1d00",
    "b": "\u0432\u0299",
    "c": "\u0441\u03f2\u1d04",
    "d": "\u0501\u0111\xf0\u1d05",
    "e": "\u0435\u0454\u03b5\u04bd\u1d07",
    "f": "\ua730",
    "g": "\u0261\u0262",
    "h": "\u04bb\u043d\u029c",
    "i": "\u0456\u03b9\u0457\u0131\u026a",
    "j": "\u0458\u1d0a",
    "k": "\u043a\u03ba\u1d0b",
    "l": "\u0142\u029f\u04cf",
    "m": "\u043c\u1d0d",
    "n": "\u043f\u03b7\u0274",
    "o": "\u043e\u03bf\u03c3\xf8\u1d0f",
    "p": "\u0440\u03c1\u1d18",
    "r": "\u0433\u0280",
    "s": "\u0455\ua731",
    "t": "\u0442\u03c4\u1d1b",
    "u": "\u03c5\u0446\u1d1c",
    "v": "\u03bd\u0475\u1d20",
    "w": "\u0461\u03c9\u1d21",
    "x": "\u0445\u03c7",
    "y": "\u0443\u03b3\u028f",
    "z": "\u1d22",
}
"""Lower-case letters that look like Latin ones and that NFKC leaves unchanged."""

LEET = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
"""Digits for letters; "1" is tried as "i" and as "l"."""

SIGNS = {"@": "a", "$": "s", "!": "i", "|": "l", "+": "t", "€": "e", "£": "l", "¡": "i"}
"""Signs for letters, where a letter or a digit follows."""

FACES = {"👶": " baby ", "🧒": " child ", "👦": " boy ", "👧": " girl "}

WINDOW = 16
"""Largest number of pieces joined to one word."""

LONGEST = 40
"""Largest number of letters of a word."""

JOINED = 24
"""Largest number of letters of a joined word."""

PIECE = re.compile(r"[^\W_]+")
STARRED = re.compile(r"[^\W_]+(?:\*+[^\W_]+)+")
LONG_RUN = re.compile(r"([^\W\d_])\1{3,}")
REPEATED = re.compile(r"(.)\1+")
BEFORE_LETTER = re.compile(rf"[{re.escape(''.join(SIGNS))}](?=[^\W_])")

_LATIN = str.maketrans({look: letter for letter, all_ in LOOKALIKES.items() for look in all_})
_FACES = str.maketrans(FACES)
_LETTERS = [str.maketrans(LEET | {"1": one}) for one in "il"]


Piece = tuple[str, bool]
"""A run of letters and digits, and whether only signs separate it from the one before."""

Window = tuple[int, int, str]
"""(first piece, last piece, word)."""


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """A text prepared for any number of tables."""

    plain: str
    """See `simplify`."""

    views: tuple[tuple[list[Piece], list[Window]], ...]
    """One (pieces, windows) for each way to cut the text into words."""


def prepare(text: str | PreparedText) -> PreparedText:
    """Return the `PreparedText` of a text; a `PreparedText` is returned unchanged."""
    if isinstance(text, PreparedText):
        return text
    plain = simplify(text)
    views = tuple((pieces, list(_windows(pieces))) for pieces in _views(plain))
    return PreparedText(plain=plain, views=views)


def simplify(text: str) -> str:
    """Return a text in lower case, look-alike letters as plain Latin ones.

    A letter is repeated at most three times in a row.
    """
    return LONG_RUN.sub(r"\1\1\1", _plain(text))


def _plain(text: str) -> str:
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text.translate(_FACES))
    text = unicodedata.normalize("NFD", text.casefold())
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return text.translate(_LATIN)


def _views(plain: str) -> Iterator[list[Piece]]:
    """Yield each way to cut the text into pieces."""
    yield _pieces(plain, PIECE)
    signs = BEFORE_LETTER.sub(lambda found: SIGNS[found[0]], plain)
    if signs != plain:
        yield _pieces(signs, PIECE)
    if "*" in plain:
        yield _pieces(plain, STARRED)


def _pieces(text: str, pattern: re.Pattern[str]) -> list[Piece]:
    found: list[Piece] = []
    end: int | None = None
    for piece in pattern.finditer(text):
        between = text[end : piece.start()] if end is not None else " "
        found.append((piece[0], not re.search(r"\s", between)))
        end = piece.end()
    return found


def _windows(pieces: list[Piece]) -> Iterator[Window]:
    """Yield single pieces, and consecutive ones that may be one word in disguise."""
    for first, (word, _) in enumerate(pieces):
        if len(word) > LONGEST:
            continue
        yield first, first, word
        glued, letters = True, len(set(word)) == 1
        for last in range(first + 1, min(first + WINDOW, len(pieces))):
            piece, beside = pieces[last]
            glued, letters = glued and beside, letters and len(set(piece)) == 1
            word += piece
            if not (glued or letters) or len(word) > JOINED:
                break
            yield first, last, word


def variants(word: str) -> Iterator[str]:
    """Yield a word, and if it mixes digits and letters, its readings with letters for digits."""
    yield word
    if not word.isalpha() and not word.isdigit() and any(c.isalpha() for c in word):
        yield from dict.fromkeys(word.translate(table) for table in _LETTERS)


def squeeze(word: str) -> str:
    """Return a word with each run of one letter as a single letter."""
    return REPEATED.sub(r"\1", word)


def is_drawn_out(word: str, term: str) -> bool:
    """Return whether a word is a term with some letters repeated."""
    own, wanted = _runs(word), _runs(term)
    return len(own) == len(wanted) and all(
        a == b and n >= m for (a, n), (b, m) in zip(own, wanted, strict=True)
    )


def _runs(word: str) -> list[tuple[str, int]]:
    return [(letter, len(list(run))) for letter, run in groupby(word)]
