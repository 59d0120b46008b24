"""From what a model said to yes, no, the words it named, or why that is unknown.

Models are asked for a word or for JSON, and answer with sentences, quotes, code fences and
explanations as well. What can be read without doubt is read; everything else is unknown.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ine.observers.base import Answer, Unknown

FOUND = "found"
WORDS = "words"
"""Keys of the JSON that servers with structured output are asked for."""

NEGATION = re.compile(
    r"\b(?:no|not|none|neither|nor|never|without|free of|lacks?|absence of|absent|cannot|\w+n't)\b"
)
REVERSED = re.compile(r"\W*(?:is|are)?\W*(?:\bnot\b|n't\b|\babsent\b|:\W*(?:no|false|none)\b)")
"""What denies the word before it: "fire is not visible", "fire: no"."""

CLAUSE = re.compile(r"[.;!?\n]|\bbut\b|\bhowever\b|\bexcept\b|\balthough\b")
"""Where a negation ends."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The texts by which answers about a concept are recognised, without regard to case."""

    words: tuple[str, ...]
    """Names of the concept or of its parts; an answer that names one says yes."""

    yes: tuple[str, ...]
    no: tuple[str, ...]
    """How an answer begins that says yes or no."""

    refusals: tuple[str, ...]
    """Parts of sentences in which a model declines to answer."""


def parse_reply(raw: str, vocabulary: Vocabulary) -> Answer:
    """Return what a reply says about a concept.

    In this order: JSON, a beginning with yes, a refusal, a beginning with no, words of the
    vocabulary that are not negated, the negated ones. Without any of these a reply is nonsense,
    and so is one that begins with no and goes on to name what it sees of the concept.
    """
    if answer := _from_json(raw, vocabulary):
        return answer
    text = _plain(raw)
    words = _named(text, vocabulary.words, negated=False)
    if _begins(text, vocabulary.yes):
        return Answer(found=True, words=words, raw=raw)
    refuses = any(_has(text, part) for part in vocabulary.refusals)
    if refuses:
        return _unknown("refusal", raw)
    if _begins(text, vocabulary.no):
        return _unknown("nonsense", raw) if words else Answer(found=False, raw=raw)
    if words:
        return Answer(found=True, words=words, raw=raw)
    if _named(text, vocabulary.words, negated=True):
        return Answer(found=False, raw=raw)
    return _unknown("nonsense", raw)


def _unknown(why: Unknown, raw: str) -> Answer:
    return Answer(found=None, unknown=why, raw=raw)


def _plain(text: str) -> str:
    """Return a text in lower case, with one kind of quote and no marks around it."""
    text = re.sub("[\u2018\u2019\u00b4`]", "'", text).lower()
    return re.sub(r"^[\W_]+|[\W_]+$", "", re.sub(r"[ \t]+", " ", text))


def _pattern(words: str) -> re.Pattern[str]:
    gaps = r"[\s_-]+".join(map(re.escape, _plain(words).split()))
    return re.compile(rf"(?<!\w){gaps}(?!\w)")


def _has(text: str, words: str) -> bool:
    return bool(_plain(words)) and bool(_pattern(words).search(text))


def _begins(text: str, choices: Iterable[str]) -> bool:
    """Return whether a text, "the answer is" left out, begins with one of the texts."""
    start = re.sub(r"^(?:(?:the )?(?:final )?answer(?: is)?)[\W_]*", "", text)
    return any(_plain(one) and _pattern(one).match(start) for one in choices)


def _named(text: str, vocabulary: Iterable[str], negated: bool) -> tuple[str, ...]:
    """Return the words that a text affirms, or those that it denies."""
    return tuple(w for w in vocabulary if _plain(w) and negated in _denials(text, w))


def _denials(text: str, word: str) -> Iterator[bool]:
    """Yield for each mention of a word whether its clause denies it."""
    for mention in _pattern(word).finditer(text):
        before = CLAUSE.split(text[: mention.start()])[-1]
        after = text[mention.end() :]
        yield bool(NEGATION.search(before)) or bool(REVERSED.match(after))


def _from_json(raw: str, vocabulary: Vocabulary) -> Answer | None:
    """Return the answer in the first JSON object of a text that has one."""
    for start in re.finditer(r"\{", raw):
        try:
            value, _ = json.JSONDecoder().raw_decode(raw, start.start())
        except (ValueError, RecursionError):
            continue
        if (answer := _from_object(value, raw, vocabulary)) is not None:
            return answer
    return None


def _from_object(value: Any, raw: str, vocabulary: Vocabulary) -> Answer | None:
    if not isinstance(value, dict):
        return None
    keys = {str(key).lower(): item for key, item in value.items()}
    listed = keys.get(WORDS)
    items = listed if isinstance(listed, list) else []
    texts = [_plain(one) for one in items if isinstance(one, str)]
    words = tuple(w for w in vocabulary.words if _plain(w) in texts)
    found = _truth(keys.get(FOUND, keys.get("answer")), vocabulary)
    if found is None and FOUND not in keys and isinstance(listed, list):
        found = bool(words) if words or not items else None
    if found is None:
        return None
    return Answer(found=found, words=words if found else (), raw=raw)


def _truth(value: Any, vocabulary: Vocabulary) -> bool | None:
    """Return the truth of a JSON value that says yes or no, or None."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    text = _plain(value)
    if _begins(text, (*vocabulary.yes, "true")):
        return True
    return False if _begins(text, (*vocabulary.no, "false")) else None
