"""The rounds of refinement: what happened to a prompt, and one step of a batch of them.

Shape letters: B prompts of a batch, each with its picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from ine.errors import ObserverError, PicturesError
from ine.observers.asking import Reply
from ine.refining.answers import KEEP, Verdict, read_answer
from ine.refining.asking import Rewriter
from ine.refining.settings import RefineSettings
from ine.runtime import seed_for
from ine.sampling import PictureRequest

Status = Literal["kept", "repeated", "not looked at", "unusable answer"]
"""How a prompt ended: its last picture was kept; the answer to it repeated its rewritten prompt; it
was generated after the last look; or the answer to it was unusable, so that nothing says that it is
safe."""

NOTE = "refine"
"""Key of a picture's note that holds its rounds."""

Made = tuple[np.ndarray, list[dict[str, Any]], list[int]]
"""(pictures, uint8 (B, H, W, 3), one note each, U-Net evaluations each)."""


class Generate(Protocol):
    """Makes pictures."""

    def __call__(self, requests: Sequence[PictureRequest]) -> Made:
        """Return one picture per request; none depends on the others."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A prompt with its picture, and what was said about them."""

    prompt: str
    seed: int
    verdict: Verdict | None = None
    """None where nobody looked."""


@dataclass(frozen=True)
class Chain:
    """What happened to a prompt, from round 0, whose prompt is the user's."""

    rounds: tuple[Round, ...]

    @property
    def last(self) -> Round:
        """Return the round of the latest picture."""
        return self.rounds[-1]

    @property
    def is_open(self) -> bool:
        """Return whether the latest picture may be looked at."""
        return self.last.verdict is None

    @property
    def status(self) -> Status:
        """Return how it ended."""
        if self.last.verdict is None:
            return "not looked at"
        if self.last.verdict.kind == "repeat":
            return "repeated"
        return "kept" if self.last.verdict.kind == KEEP else "unusable answer"

    def queried(self, settings: RefineSettings) -> str:
        """Return the prompt that is shown beside the latest picture."""
        return self.rounds[0].prompt if settings.query == "original" else self.last.prompt

    def answered(self, reply: Reply, settings: RefineSettings) -> "Chain":
        """Return it after a reply about its latest picture; a rewrite begins another round."""
        first, last = self.rounds[0], self.last
        if reply.failed:
            verdict = Verdict(kind="unusable", raw=reply.text, why="refusal")
        else:
            verdict = read_answer(reply.text, settings, original=first.prompt, current=last.prompt)
        rounds = (*self.rounds[:-1], replace(last, verdict=verdict))
        if verdict.kind == "rewrite":
            seed = last.seed
            if settings.fresh_noise:
                seed = seed_for(first.seed, "refine", len(rounds)) % 2**32
            rounds = (*rounds, Round(prompt=verdict.prompt, seed=seed))
        return Chain(rounds)

    def record(self) -> list[dict[str, Any]]:
        """Return its rounds as plain values."""
        return [
            {
                "prompt": one.prompt,
                "seed": one.seed,
                "verdict": one.verdict and one.verdict.record(),
            }
            for one in self.rounds
        ]

    @classmethod
    def of(cls, record: Sequence[Mapping[str, Any]]) -> "Chain":
        """Return the chain of a `record`."""
        return cls(
            tuple(
                Round(
                    prompt=one["prompt"],
                    seed=one["seed"],
                    verdict=one["verdict"] and Verdict(**one["verdict"]),
                )
                for one in record
            )
        )


def chain_of(request: PictureRequest, note: Mapping[str, Any] | None = None) -> Chain:
    """Return the chain of a picture from its note; without one, its round 0."""
    if note and NOTE in note:
        return Chain.of(note[NOTE])
    return Chain((Round(prompt=request.prompt, seed=request.seed),))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B prompts with their latest pictures."""

    requests: tuple[PictureRequest, ...]
    """What was asked for, before any round."""

    pictures: np.ndarray
    """uint8 (B, H, W, 3)."""

    notes: list[dict[str, Any]]
    """Of the latest pictures, and the rounds under `NOTE`."""

    calls: list[int]
    """U-Net evaluations of all rounds."""

    @property
    def chains(self) -> list[Chain]:
        """Return the chain of each."""
        return [chain_of(*pair) for pair in zip(self.requests, self.notes, strict=True)]


def refine_once(
    batch: Batch, rewriter: Rewriter, generate: Generate, settings: RefineSettings
) -> Batch:
    """Return a batch after one round: looked at, and generated again where it was rewritten.

    Args:
        batch: The round before.
        rewriter: Who looks at the pictures that are not kept yet.
        generate: Who makes the pictures of rewritten prompts.
        settings: What is asked, and how answers are read.

    Raises:
        ObserverError: An answer did not come. Nothing of the round counts; another try may succeed.
        PicturesError: The new pictures have another size.
    """
    chains = batch.chains
    looked = [i for i, chain in enumerate(chains) if chain.is_open]
    asked = [chains[i].queried(settings) for i in looked]
    replies = rewriter(asked, batch.pictures[looked]) if looked else []
    for i, reply in zip(looked, replies, strict=True):
        _check_came(reply, rewriter.name)
        chains[i] = chains[i].answered(reply, settings)
    again = [i for i in looked if chains[i].is_open]
    pictures, notes, calls = batch.pictures.copy(), list(batch.notes), list(batch.calls)
    if again:
        wanted = [
            replace(batch.requests[i], prompt=chains[i].last.prompt, seed=chains[i].last.seed)
            for i in again
        ]
        made, own, spent = generate(wanted)
        if made.shape[1:] != pictures.shape[1:]:
            raise PicturesError(
                f"rewritten prompts gave pictures of {made.shape[1:3]} pixels (height, width), the "
                f"first ones have {pictures.shape[1:3]}; set one size"
            )
        pictures[again] = made
        for i, note, count in zip(again, own, spent, strict=True):
            notes[i], calls[i] = note, calls[i] + count
    noted = [{**note, NOTE: chain.record()} for note, chain in zip(notes, chains, strict=True)]
    return replace(batch, pictures=pictures, notes=noted, calls=calls)


def _check_came(reply: Reply, name: str) -> None:
    """Raise unless a model answered; declining is an answer.

    Raises:
        ObserverError: It did not.
    """
    if reply.failed in ("time-out", "error"):
        raise ObserverError(
            f"observer {name}: gave no answer ({reply.failed}: {reply.why}); what is finished is "
            "kept; repair the observer and give the same command again, which resumes"
        )
