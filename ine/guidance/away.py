"""Additive guidance, for each picture away from what an observer found in it.

    eps = eps_0 + w (eps_c - eps_0) - s (eps_n - eps_0)

with an n of its own for every picture, see `ine.guidance.vl_dnp`. Without an observer, as in a
single step of an attack, n holds every concept. Shape letter: B pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ine.guidance.additive import additive
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts, QueryUNet, Session, Step, UNetQuery
from ine.guidance.released import negative_text
from ine.observers.watching import Sought
from ine.text.condition import Condition, join_conditions
from ine.text.tokens import trigger_pattern

Steer = Literal["words", "embedding", "both"]
"""What of a finding stands in the negative."""


@dataclass(frozen=True, kw_only=True)
class AwayFromFound(Method):
    """Additive guidance, for each picture away from what was found in it."""

    given: Negative
    """Text before the words that were named, and the embeddings, each known by its concept."""

    sought: tuple[Sought, ...]
    steer: Steer
    strength: float
    as_released: bool = False

    @property
    def negative(self) -> Negative:  # type: ignore[override]
        """All that a picture may be steered away from, for logs and checks."""
        words = [self.given.text.strip(), *(one.words for one in self.sought)]
        text = "" if self.steer == "embedding" else ", ".join(filter(None, words))
        return Negative(text, () if self.steer == "words" else self.given.embeddings)

    def text(
        self, found: frozenset[str] | None, named: Mapping[str, tuple[str, ...]] | None
    ) -> str:
        """Return the negative of a picture, triggers and words.

        Args:
            found: The concepts that count as found; None is all.
            named: {concept: words by which it was named}.
        """
        shown = [one for one in self.sought if found is None or one.concept in found]
        words = "" if self.steer == "embedding" else self._words(shown, named or {})
        if self.steer == "words":
            return words
        concepts = {one.concept for one in shown}
        mine = [e.trigger for e in self.given.embeddings if e.concept in concepts]
        # Before the words, which may be cut off where the context ends; vectors may not.
        triggers = [one for one in mine if not trigger_pattern([one]).search(words)]
        return ", ".join(filter(None, (*triggers, words)))

    def _words(self, shown: Sequence[Sought], named: Mapping[str, tuple[str, ...]]) -> str:
        own = self.given.text.strip()
        if self.as_released:
            prefix = own or ", ".join(one.words for one in shown)
            return negative_text(prefix, [w for one in shown for w in named.get(one.concept, ())])
        words = [own]
        for one in shown:
            words += named.get(one.concept) or (() if own else (one.words,))
        return ", ".join(filter(None, dict.fromkeys(words)))

    def everything(self) -> str:
        """Return the longest negative that there can be."""
        return self.text(None, {one.concept: one.vocabulary for one in self.sought})

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts and the empty text once; every negative when it is first needed.

        Raises:
            PromptError: Embeddings are too long for the context of the text encoder.
        """
        session = _AwaySession(
            method=self,
            prompts=prompts,
            positive=prompts.positive(),
            empty=prompts.empty(),
        )
        session.condition(self.everything())  # what cannot be encoded is found out before the run
        yield session


@dataclass(frozen=True, kw_only=True)
class _AwaySession(MethodSession):
    method: AwayFromFound
    prompts: Prompts
    positive: Condition
    empty: Condition
    known: dict[str, Condition] = field(default_factory=dict)
    """{negative: its condition, one row}."""

    used: dict[int, list[str]] = field(default_factory=dict)
    """Per picture, its negatives so far."""

    def condition(self, text: str) -> Condition:
        if text not in self.known:
            vectors = self.method.given.vectors()
            # One by one, so that a picture's negative does not depend on the others of its batch.
            self.known[text] = self.prompts.encode([text], vectors)
        return self.known[text]

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        rows = range(len(self.positive)) if pictures is None else pictures
        negatives = []
        for i in rows:
            found = None if step.found is None else step.found[i]
            text = self.method.text(found, None if step.named is None else step.named[i])
            negatives.append(self.condition(text))
            used = self.used.setdefault(i, [])
            if text not in used:
                used.append(text)
        out = query_unet(
            [
                UNetQuery.of("empty", self.empty, pictures),
                UNetQuery.of("positive", self.positive, pictures),
                UNetQuery("negative", join_conditions(negatives), pictures),
            ]
        )
        predictions = out["empty"], out["positive"], out["negative"]
        return additive(*predictions, self.prompts.scale, self.method.strength)

    def notes(self) -> list[dict[str, Any]]:
        return [{"negatives": self.used.get(i, [])} for i in range(len(self.positive))]
