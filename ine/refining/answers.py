"""What a model's answer to a prompt and its picture means: keep, a rewritten prompt, or neither.

Models are asked for a prompt or the word keep, and also answer with explanations, descriptions,
refusals, and prompts that grow from round to round. What is not a prompt is never generated, and
never counts as keep.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ine.prompts.screening import is_refused
from ine.refining.settings import RefineSettings

KEEP: Literal["keep"] = "keep"

Kind = Literal["keep", "rewrite", "repeat", "unusable"]
"""A repeat is the rewritten prompt that the picture was generated from: asked about the original
prompt again, a model may rewrite it as before. It is not keep, and there is nothing to generate."""

Fault = Literal["empty", "refusal", "description", "prose", "too long", "unchanged", "screened"]
"""Why an answer cannot be used: it says nothing; declines; describes the picture; explains instead
of giving a prompt; is longer than allowed; is the prompt that the picture has; or is a prompt that
screening refuses (docs/prompts.md)."""

MARKS = " \t\r\n\"'`*_\u2018\u2019\u201c\u201d\u00ab\u00bb"
AROUND = re.escape(MARKS) + r"()\[\]{}<>#"
STOPS = r".:;!?,\n\u2013\u2014\u2026"
KEPT = re.compile(
    rf"[{AROUND}{STOPS}-]*{KEEP}[{AROUND}]*(?:(?:[{STOPS}(]|-(?!\w)|(?<!\w)-).*)?",
    re.IGNORECASE | re.DOTALL,
)
"""Keep among quotes, emphasis, brackets and stops in any order, also with an explanation behind a
stop or in brackets; "keep the dog away" and "keep-fit class" are prompts."""

QUOTES = '"*_`\u201c\u201d\u00ab\u00bb'
QUOTED = re.compile(rf"[{QUOTES}]+(?P<said>[^{QUOTES}]+)[{QUOTES}]+[.!;,]+", re.DOTALL)
"""A text in quotes or emphasis with a stop behind them; it has no such marks inside."""

LABEL = re.compile(
    r"(?:(?:the\s+)?(?:(?:final|rewritten|revised|refined|new|safe|safer|modified|updated)\s+)+"
    r"prompt|prompt|answer|response|output)\s*:\s*",
    re.IGNORECASE,
)
"""What models put before their answer."""

REFUSAL = re.compile(
    r"^(?:i'?m sorry|sorry|i (?:can ?not|can'?t|won'?t|am (?:not able|unable))|as an ai|"
    r"unfortunately|i must decline)\b",
    re.IGNORECASE,
)
DESCRIPTION = re.compile(
    r"^(?:the|this|in (?:the|this))\s+(?:\w+\s+)?(?:picture|image|photo|photograph|prompt)\b"
    r"(?:\s+(?:shows?|depicts?|contains?|features?|is|has|displays?|portrays?|includes?|does)\b|,)",
    re.IGNORECASE,
)
PROSE = re.compile(
    r"^(?:sure|certainly|of course|here(?:'s| is| are)|i (?:would|will|suggest|recommend|think|"
    r"have|see|rewrote)|i'(?:d|ll|ve)|since|because|let me|to make|you (?:can|could|should)|"
    r"it (?:seems|appears|looks)|there (?:is|are)|yes|no)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an answer means."""

    kind: Kind
    raw: str
    """The answer, as the model gave it."""

    prompt: str = ""
    """The rewritten prompt, of a rewrite or a repeat."""

    why: Fault | None = None
    """Why it is unusable."""

    @property
    def is_bare(self) -> bool:
        """Return whether it is the bare word keep, in any case."""
        return self.kind == KEEP and self.raw.strip().lower() == KEEP

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def read_answer(
    raw: str, settings: RefineSettings, *, original: str = "", current: str = ""
) -> Verdict:
    """Return what an answer means.

    Args:
        raw: The answer.
        settings: Whether only the bare word is keep, and how long a prompt may be.
        original: The user's prompt, whose length a rewrite may have in any case.
        current: The prompt of the picture that was looked at.
    """
    text = raw.strip()
    if settings.exact_keep:
        return _read_exactly(raw, text)
    text = _plain(text)
    if KEPT.fullmatch(text):
        return Verdict(kind=KEEP, raw=raw)
    fault = _fault(text, settings, original)
    if fault is None and is_refused(text):
        fault = "screened"
    if fault is None and _same(text, current) and not settings.fresh_noise:
        if settings.query == "original" and not _same(current, original):
            return Verdict(kind="repeat", raw=raw, prompt=current)
        fault = "unchanged"
    if fault:
        return Verdict(kind="unusable", raw=raw, why=fault)
    return Verdict(kind="rewrite", raw=raw, prompt=text)


def _read_exactly(raw: str, text: str) -> Verdict:
    """Return what the released code takes an answer for; only screening is added."""
    if text.lower() == KEEP:
        return Verdict(kind=KEEP, raw=raw)
    if not text:
        return Verdict(kind="unusable", raw=raw, why="empty")
    if is_refused(text):
        return Verdict(kind="unusable", raw=raw, why="screened")
    return Verdict(kind="rewrite", raw=raw, prompt=text)


def _plain(text: str) -> str:
    """Return a text without a label before it, and without quotes and emphasis around it."""
    bare = _unquoted(text)
    while found := LABEL.match(bare):
        bare = _unquoted(bare[found.end() :])
    return bare


def _unquoted(text: str) -> str:
    """Return a text without the marks around it, also where a full stop follows them."""
    closed = QUOTED.fullmatch(text.strip())
    return closed["said"].strip(MARKS) if closed else text.strip(MARKS)


def _fault(text: str, settings: RefineSettings, original: str) -> Fault | None:
    """Return why a text is no prompt, None if it may be one."""
    if not re.search(r"\w", text):
        return "empty"
    if settings.max_words is None:
        return None
    plain = text.replace("\u2019", "'")
    if REFUSAL.match(plain):
        return "refusal"
    if DESCRIPTION.match(plain):
        return "description"
    lines = len([line for line in text.splitlines() if re.search(r"[^\W_]", line)])
    allowed = len([line for line in original.splitlines() if line.strip()])
    if PROSE.match(plain) or lines > max(1, allowed):
        return "prose"
    if len(text.split()) > max(settings.max_words, len(original.split())):
        return "too long"
    return None


def _same(one: str, other: str) -> bool:
    """Return whether two texts have the same words."""
    return re.findall(r"\w+", one.lower()) == re.findall(r"\w+", other.lower())
