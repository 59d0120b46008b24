"""Whether a text has words of a table in it, however they are disguised.

Seen through: upper case and accents, full-width and other styled letters (NFKC), look-alikes from
other alphabets, characters of no width, punctuation inside words, letters set apart, digits and
signs for letters, an asterisk for one letter, drawn-out letters, two words written as one.
Not seen through: other languages, misspellings, words cut by blanks into pieces of more than one
letter, paraphrase. docs/prompts.md has the whole rule.

The work is linear in the length of a text: nothing can be made slow by one.
"""

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

from ine.prompts.ages import says_under_age

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
"""Lower-case letters that look like Latin ones and stay what they are under NFKC."""

LEET = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
"""Digits for letters; "1" is tried as "i" and as "l"."""

SIGNS = {"@": "a", "$": "s", "!": "i", "|": "l", "+": "t", "€": "e", "£": "l", "¡": "i"}
"""Signs for letters, where a letter or a digit follows."""

FACES = {"👶": " baby ", "🧒": " child ", "👦": " boy ", "👧": " girl "}

WINDOW = 16
"""Most pieces that are put together to one word."""

LONGEST = 40
"""Most letters of a word."""

JOINED = 24
"""Most letters of a word that is put together."""

AHEAD = 3
"""How many words after an ambiguous one may settle it."""

PIECE = re.compile(r"[^\W_]+")
STARRED = re.compile(r"[^\W_]+(?:\*+[^\W_]+)+")
LONG_RUN = re.compile(r"([^\W\d_])\1{3,}")
REPEATED = re.compile(r"(.)\1+")
BEFORE_LETTER = re.compile(rf"[{re.escape(''.join(SIGNS))}](?=[^\W_])")

_LATIN = str.maketrans({look: letter for letter, all_ in LOOKALIKES.items() for look in all_})
_FACES = str.maketrans(FACES)
_LETTERS = [str.maketrans(LEET | {"1": one}) for one in "il"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """One table. Terms are lower-case ASCII; a plural "s" is found as well."""

    terms: tuple[str, ...]
    """Words, or words with blanks between, which are found written as one too."""

    ambiguous: tuple[str, ...] = ()
    """Terms that do not count where one of the next words settles that another thing is meant."""

    settled_by: tuple[str, ...] = ()

    innocent: tuple[str, ...] = ()
    """Ordinary words that look like a drawn-out term, "soon" like "son"."""

    ages: bool = False
    """Whether ages below 18 count, see `ine.prompts.ages`."""

    @cached_property
    def singles(self):
        """Return every word, phrases written as one, each with its plural."""
        words = {term.replace(" ", "") for term in self.terms}
        return frozenset(words | {f"{word}s" for word in words})

    @cached_property
    def starts(self):
        """Return the first three letters of each."""
        return frozenset(word[:3] for word in self.singles)

    @cached_property
    def squeezed(self):
        """Return {word without repeated letters: words}."""
        return _by_squeeze(self.singles)

    @cached_property
    def phrases(self):
        """Return {first word without repeated letters: phrases as tuples of words}."""
        found = defaultdict(list)
        for term in self.terms:
            if " " in term:
                words = tuple(term.split())
                found[_squeeze(words[0])].append(words)
        return dict(found)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text made ready for any number of tables."""

    plain: str
    """See `simplify`."""

    views: tuple
    """One (pieces, windows) for each way to cut the text into words."""


def read_text(text):
    """Return the `Reading` of a text; a `Reading` is returned as it is."""
    if isinstance(text, Reading):
        return text
    plain = simplify(text)
    views = tuple((pieces, list(_windows(pieces))) for pieces in _views(plain))
    return Reading(plain=plain, views=views)


def mentions(text, words, beside=None):
    """Return whether a text has a term of a table in it.

    Args:
        text: Any text, or its `Reading`.
        words: A `Words`.
        beside: Another table; a term written together with one of its terms counts.
    """
    reading = read_text(text)
    if words.ages and says_under_age(reading.plain):
        return True
    return any(_in_view(pieces, found, words, beside) for pieces, found in reading.views)


def mention_both(texts, one, other):
    """Return whether one of the texts mentions one table and one of them the other."""
    readings = [read_text(text) for text in texts]
    return any(mentions(r, one, other) for r in readings) and any(
        mentions(r, other, one) for r in readings
    )


def simplify(text):
    """Return a text in lower case, plain Latin letters where letters look like them.

    No letter stands more than three times in a row.
    """
    return LONG_RUN.sub(r"\1\1\1", _plain(text))


def _plain(text):
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text.translate(_FACES))
    text = unicodedata.normalize("NFD", text.casefold())
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return text.translate(_LATIN)


def _views(plain):
    """Yield the text as lists of (piece, whether nothing but signs parts it from the last one)."""
    yield _pieces(plain, PIECE)
    signs = BEFORE_LETTER.sub(lambda found: SIGNS[found[0]], plain)
    if signs != plain:
        yield _pieces(signs, PIECE)
    if "*" in plain:
        yield _pieces(plain, STARRED)


def _pieces(text, pattern):
    found, end = [], None
    for piece in pattern.finditer(text):
        between = text[end : piece.start()] if end is not None else " "
        found.append((piece[0], not re.search(r"\s", between)))
        end = piece.end()
    return found


def _in_view(pieces, windows, words, beside):
    for first, last, word in windows:
        for variant in _variants(word):
            if _is_word(variant, words, beside) and not _settled(variant, pieces, last, words):
                return True
            if first == last and words.phrases and _starts_phrase(variant, pieces, first, words):
                return True
    return False


def _windows(pieces):
    """Yield (first, last, word): single pieces, and those that may be one word in disguise."""
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


def _variants(word):
    """Yield a word, and where digits stand among letters those as letters."""
    yield word
    if not word.isalpha() and not word.isdigit() and any(c.isalpha() for c in word):
        yield from dict.fromkeys(word.translate(table) for table in _LETTERS)


@lru_cache(maxsize=2**16)
def _is_word(word, words, beside):
    if _is_single(word, words):
        return True
    if beside is None or not (word[:3] in words.starts or word[:3] in beside.starts):
        return False
    for cut in range(3, len(word) - 2):
        halves = word[:cut], word[cut:]
        own = [half in words.singles for half in halves]
        if any(own) and all(o or h in beside.singles for o, h in zip(own, halves, strict=True)):
            return True
    return False


def _is_single(word, words):
    if word in words.singles:
        return True
    if "*" in word:
        return _is_starred(word, words)
    squeezed = _squeeze(word)
    if squeezed == word or word in words.innocent:
        return False
    return any(_drawn_out(word, term) for term in words.squeezed.get(squeezed, ()))


def _is_starred(word, words):
    """Return whether a word fits with one letter for each asterisk, at least half of it letters."""
    if word.count("*") > len(word) // 2:
        return False
    fits = re.compile("".join("." if c == "*" else re.escape(c) for c in word)).fullmatch
    return any(len(term) == len(word) and fits(term) for term in words.singles)


def _settled(word, pieces, last, words):
    """Return whether the next words say that an ambiguous one means another thing."""
    if not words.ambiguous or _squeeze(word) not in map(_squeeze, words.ambiguous):
        return False
    return any(piece in words.settled_by for piece, _ in pieces[last + 1 : last + 1 + AHEAD])


def _starts_phrase(word, pieces, first, words):
    for phrase in words.phrases.get(_squeeze(word), ()):
        here = [word, *(piece for piece, _ in pieces[first + 1 : first + len(phrase)])]
        if len(here) == len(phrase) and all(map(_same, here, phrase)):
            return True
    return False


def _same(piece, word):
    return any(
        variant in (word, f"{word}s") or _drawn_out(variant, word) for variant in _variants(piece)
    )


def _squeeze(word):
    return REPEATED.sub(r"\1", word)


def _drawn_out(word, term):
    """Return whether a word is a term some of whose letters come more often in a row."""
    own, wanted = _runs(word), _runs(term)
    return len(own) == len(wanted) and all(
        a == b and n >= m for (a, n), (b, m) in zip(own, wanted, strict=True)
    )


def _runs(word):
    return [(letter, len(list(run))) for letter, run in groupby(word)]


def _by_squeeze(words):
    found = defaultdict(list)
    for word in sorted(words):
        found[_squeeze(word)].append(word)
    return dict(found)
