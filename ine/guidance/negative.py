"""What stands in a negative slot: text, embeddings, or both; in one string, or matched.

Shape letters: B pictures, K negatives, C latent channels, H W latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ine.embedding import ConceptEmbedding
from ine.errors import EmbeddingError, IneError, did_you_mean
from ine.guidance.protocol import Prompts, Step, Wanted
from ine.text import trigger_pattern


class Slot(Protocol):
    """A negative slot at work on one batch."""

    def needs_empty(self, step: Step) -> bool:
        """Return whether `settle` will look at the output of the empty text at this step."""

    def wanted(self, step: Step, pictures) -> list[Wanted]:
        """Return what the U-Net has to be asked at a step."""

    def settle(self, step: Step, pictures, out) -> torch.Tensor:
        """Return the negative's U-Net output, (pictures asked about, C, H, W)."""

    def notes(self) -> list[dict]:
        """Return what is worth logging, one dict per picture."""


@dataclass(frozen=True)
class Negative:
    """A negative as a UI user types it, e.g. "blurry, fire-neg"."""

    text: str = ""
    embeddings: tuple[ConceptEmbedding, ...] = ()

    def __post_init__(self):
        """Raise `EmbeddingError` where two embeddings answer to one trigger."""
        triggers = [e.trigger for e in self.embeddings]
        twice = [t for i, t in enumerate(triggers) if t.lower() in map(str.lower, triggers[:i])]
        if twice:
            raise EmbeddingError(
                f"two embeddings have the trigger {twice[0]!r}; give one of them, or rename one"
            )

    @property
    def name(self):
        """Return what logs call it: its triggers, else its text."""
        return ", ".join(e.trigger for e in self.embeddings) or self.text

    def prompt(self):
        """Return the text with the trigger of every embedding in it."""
        text = self.text.strip()
        for embedding in self.embeddings:
            if not trigger_pattern([embedding.trigger]).search(text):
                text = f"{text}, {embedding.trigger}" if text else embedding.trigger
        return text

    def vectors(self):
        """Return {trigger: vectors per text encoder}."""
        return {e.trigger: e.vectors for e in self.embeddings}

    def condition(self, prompts):
        """Return the negative's condition, one row; that of no text when there is nothing."""
        text = self.prompt()
        return prompts.encode([text], self.vectors()) if text else prompts.nothing()

    def candidates(self):
        """Return the single negatives that a gate may look for: itself."""
        return (self,)

    def begin(self, prompts: Prompts) -> Slot:
        """Encode once for a batch."""
        count = len(prompts.texts)
        return _Joined(self.condition(prompts).repeat(count), count)


@dataclass(frozen=True)
class PerPicture:
    """A negative text of its own for every picture of a batch, such as what each one showed."""

    texts: tuple[str, ...]
    """B texts."""

    @property
    def name(self):
        """Return what logs call it."""
        return "; ".join(dict.fromkeys(self.texts))

    def prompt(self):
        """Return a text that is empty only where there is nothing to steer away from."""
        return "; ".join(filter(None, dict.fromkeys(self.texts)))

    def candidates(self):
        """Return the single negatives that a gate may look for: itself."""
        return (self,)

    def begin(self, prompts: Prompts) -> Slot:
        """Encode once for a batch of as many prompts."""
        if len(prompts.texts) != len(self.texts):
            raise ValueError(f"{len(self.texts)} negatives for {len(prompts.texts)} pictures")
        return _Joined(prompts.encode(self.texts), len(self.texts))


@dataclass(frozen=True)
class _Joined:
    condition: object
    count: int

    def needs_empty(self, step):
        return False

    def wanted(self, step, pictures):
        return [Wanted.of("negative", self.condition, pictures)]

    def settle(self, step, pictures, out):
        return out["negative"]

    def notes(self):
        return [{} for _ in range(self.count)]


@dataclass(frozen=True)
class Matched:
    """Several negatives of which every picture uses the one that fits it best.

        n* = argmax_n cos(eps_n - eps_0, eps_pos - eps_0)

    After CASG (arXiv 2602.20880): one matching category as the negative does better than all of
    them in one string. Chosen per picture at the query steps and held in between, so that other
    steps cost no more than one negative.
    """

    negatives: tuple[Negative, ...]
    every: int = 4
    """A query at steps 0, every, 2 every ...; 1 chooses anew at every step."""

    def __post_init__(self):
        """Raise `IneError` where there is nothing to choose from."""
        if not self.negatives:
            raise IneError("matching: no negative is given; give at least one embedding")
        names = [n.name for n in self.negatives]
        if len(set(names)) < len(names):
            raise EmbeddingError(
                f"matching: two negatives are called the same ({', '.join(names)}); rename one"
            )
        if self.every < 1:
            raise IneError(f"matching: every is {self.every}; give 1 or more steps")

    @property
    def name(self):
        """Return what logs call it."""
        return " | ".join(n.name for n in self.negatives)

    @property
    def embeddings(self):
        """Return all embeddings, in order."""
        return tuple(e for n in self.negatives for e in n.embeddings)

    def prompt(self):
        """Return the candidates' strings, for logs and cache keys."""
        return " | ".join(n.prompt() for n in self.negatives)

    def candidates(self):
        """Return the single negatives."""
        return self.negatives

    def begin(self, prompts: Prompts) -> Slot:
        """Encode every negative once for a batch; of one negative there is nothing to choose."""
        if len(self.negatives) == 1:
            return self.negatives[0].begin(prompts)
        return _Matching(
            names=[n.name for n in self.negatives],
            conditions=[n.condition(prompts) for n in self.negatives],
            every=self.every,
            chosen=[None] * len(prompts.texts),
            history=[[] for _ in prompts.texts],
        )


@dataclass(frozen=True, kw_only=True)
class _Matching:
    names: list
    conditions: list
    every: int
    chosen: list
    """Which negative each picture uses now; None before its first query."""

    history: list

    def _asking(self, step, rows):
        """Return which of these pictures choose anew; nothing but their own past decides it."""
        if step.index % self.every == 0:
            return rows
        return tuple(i for i in rows if self.chosen[i] is None)

    def _users(self, step, rows, number):
        """Return which of these pictures need the output of a negative, in order."""
        asking = self._asking(step, rows)
        return tuple(i for i in rows if i in asking or self.chosen[i] == number)

    def needs_empty(self, step):
        return step.index % self.every == 0 or None in self.chosen

    def wanted(self, step, pictures):
        found = []
        for number, (name, condition) in enumerate(zip(self.names, self.conditions, strict=True)):
            users = self._users(step, self._rows(pictures), number)
            if users:
                everyone = users == tuple(range(len(self.chosen)))
                found.append(Wanted(f"negative:{name}", condition, None if everyone else users))
        return found

    def settle(self, step, pictures, out):
        rows = self._rows(pictures)
        # (negative, picture) -> output; each negative was asked about its users only.
        told = {
            (number, i): output
            for number, name in enumerate(self.names)
            if (users := self._users(step, rows, number))
            for i, output in zip(users, out[f"negative:{name}"], strict=True)
        }
        if asking := self._asking(step, rows):
            places = [rows.index(i) for i in asking]
            empty = out["empty"][places]
            towards = out["positive"][places] - empty
            fits = [
                cosine(torch.stack([told[number, i] for i in asking]) - empty, towards)
                for number in range(len(self.names))
            ]
            for i, row in zip(asking, torch.stack(fits, dim=1).detach(), strict=True):
                best = int(row.argmax())
                if best != self.chosen[i]:
                    self.chosen[i] = best
                    fit = round(float(row[best]), 4)
                    self.history[i].append([step.index, self.names[best], fit])
        return torch.stack([told[self.chosen[i], i] for i in rows])

    def _rows(self, pictures):
        return tuple(range(len(self.chosen))) if pictures is None else tuple(pictures)

    def notes(self):
        return [{"matched": list(h)} for h in self.history]


def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosine of two directions per picture, (B,) in [-1, 1]; 0 where one is nothing."""
    first, second = first.flatten(1).float(), second.flatten(1).float()
    return torch.nn.functional.cosine_similarity(first, second, dim=1, eps=1e-12)


SEVERAL = ("join", "match")
"""What to do with several embeddings: all in one string, or the one that fits each picture."""


def join_or_match(
    text: str, embeddings: Sequence[ConceptEmbedding], several: str = "join", every: int = 4
):
    """Return the negative of text and embeddings: one string ("join") or a choice ("match").

    With "match" the text stands beside every embedding.

    Raises:
        IneError: `several` is neither.
    """
    if several not in SEVERAL:
        hint = did_you_mean(several, SEVERAL)
        raise IneError(f"several {several!r} is unknown{hint}; known: {', '.join(SEVERAL)}")
    if several == "match" and embeddings:
        return Matched(tuple(Negative(text, (e,)) for e in embeddings), every)
    return Negative(text, tuple(embeddings))
