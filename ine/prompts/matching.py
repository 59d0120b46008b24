"""Whether a text contains words of a table, however they are disguised.

Seen through: upper case and accents, full-width and other styled letters (NFKC), look-alikes from
other alphabets, characters of no width, punctuation inside words, spaced letters, digits and signs
for letters, an asterisk for one letter, drawn-out letters, two words written as one; most of it is
in `ine.prompts.disguises`. Not seen through: other languages, misspellings, words cut by blanks
into pieces of more than one letter, paraphrase. docs/prompts.md has the whole rule.

The work is linear in the length of a text, so no text makes it slow.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ine.prompts.ages import says_under_age
from ine.prompts.disguises import (
    Piece,
    PreparedText,
    Window,
    is_drawn_out,
    prepare,
    squeeze,
    variants,
)

AHEAD = 3
"""Number of words after an ambiguous one that may settle its meaning."""

JOINT = r"(?:\s{1,3}|[-'’])"  # noqa: RUF001
"""Separator of the words of an innocent phrase."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordTable:
    """A table of words. Terms are lower-case ASCII; a plural "s" also matches."""

    terms: tuple[str, ...]
    """Words, or phrases with blanks, which also match written as one word."""

    ambiguous: tuple[str, ...] = ()
    """Terms that do not count if one of the next words, in `settled_by`, gives another meaning."""

    settled_by: tuple[str, ...] = ()

    innocent: tuple[str, ...] = ()
    """Ordinary words that look like a drawn-out term, "soon" like "son"."""

    innocent_phrases: tuple[str, ...] = ()
    """Phrases in which a term means something else, "minor key"; a plural "s" also matches. They
    match only as spelled here, with a blank, hyphen or apostrophe for a blank."""

    ages: bool = False
    """Whether ages below 18 also match, see `ine.prompts.ages`."""

    @cached_property
    def singles(self) -> frozenset[str]:
        """Return every word and its plural, phrases written as one word."""
        words = {term.replace(" ", "") for term in self.terms}
        return frozenset(words | {f"{word}s" for word in words})

    @cached_property
    def harmless(self) -> re.Pattern[str] | None:
        """Return a pattern for the innocent phrases, or None without any."""
        if not self.innocent_phrases:
            return None
        longest = sorted(self.innocent_phrases, key=len, reverse=True)
        phrases = "|".join(JOINT.join(map(re.escape, p.split())) for p in longest)
        return re.compile(rf"(?<![^\W_])(?:{phrases})s?(?![^\W_])")

    @cached_property
    def starts(self) -> frozenset[str]:
        """Return the first three letters of each word."""
        return frozenset(word[:3] for word in self.singles)

    @cached_property
    def squeezed(self) -> dict[str, list[str]]:
        """Return {word without repeated letters: words}."""
        found = defaultdict(list)
        for word in sorted(self.singles):
            found[squeeze(word)].append(word)
        return dict(found)

    @cached_property
    def phrases(self) -> dict[str, list[tuple[str, ...]]]:
        """Return {first word without repeated letters: phrases as tuples of words}."""
        found = defaultdict(list)
        for term in self.terms:
            if " " in term:
                words = tuple(term.split())
                found[squeeze(words[0])].append(words)
        return dict(found)


def mentions(text: str | PreparedText, words: WordTable, beside: WordTable | None = None) -> bool:
    """Return whether a text contains a term of a table.

    Args:
        text: Any text, or its `PreparedText`.
        words: The table.
        beside: Another table; a term joined with one of its terms in one word also matches.
    """
    prepared = prepare(text)
    if words.ages and says_under_age(prepared.plain):
        return True
    if words.harmless and words.harmless.search(prepared.plain):
        # The full stop separates the words on either side.
        prepared = prepare(words.harmless.sub(" . ", prepared.plain))
    return any(_in_view(pieces, found, words, beside) for pieces, found in prepared.views)


def mention_both(texts: Iterable[str], one: WordTable, other: WordTable) -> bool:
    """Return whether some text mentions the first table, and some text the other."""
    prepared = [prepare(text) for text in texts]
    return any(mentions(r, one, other) for r in prepared) and any(
        mentions(r, other, one) for r in prepared
    )


def _in_view(
    pieces: list[Piece], windows: list[Window], words: WordTable, beside: WordTable | None
) -> bool:
    for first, last, word in windows:
        for variant in variants(word):
            if _is_word(variant, words, beside) and not _settled(variant, pieces, last, words):
                return True
            if first == last and words.phrases and _starts_phrase(variant, pieces, first, words):
                return True
    return False


@lru_cache(maxsize=2**16)
def _is_word(word: str, words: WordTable, beside: WordTable | None) -> bool:
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


def _is_single(word: str, words: WordTable) -> bool:
    if word in words.singles:
        return True
    if "*" in word:
        return _is_starred(word, words)
    squeezed = squeeze(word)
    if squeezed == word or word in words.innocent:
        return False
    return any(is_drawn_out(word, term) for term in words.squeezed.get(squeezed, ()))


def _is_starred(word: str, words: WordTable) -> bool:
    """Return whether a word, at least half letters, matches with a letter for each asterisk."""
    if word.count("*") > len(word) // 2:
        return False
    fits = re.compile("".join("." if c == "*" else re.escape(c) for c in word)).fullmatch
    return any(len(term) == len(word) and fits(term) for term in words.singles)


def _settled(word: str, pieces: list[Piece], last: int, words: WordTable) -> bool:
    """Return whether the next words give an ambiguous word another meaning."""
    if not words.ambiguous or squeeze(word) not in map(squeeze, words.ambiguous):
        return False
    return any(piece in words.settled_by for piece, _ in pieces[last + 1 : last + 1 + AHEAD])


def _starts_phrase(word: str, pieces: list[Piece], first: int, words: WordTable) -> bool:
    for phrase in words.phrases.get(squeeze(word), ()):
        here = [word, *(piece for piece, _ in pieces[first + 1 : first + len(phrase)])]
        if len(here) == len(phrase) and all(map(_same, here, phrase)):
            return True
    return False


def _same(piece: str, word: str) -> bool:
    return any(
        variant in (word, f"{word}s") or is_drawn_out(variant, word) for variant in variants(piece)
    )
