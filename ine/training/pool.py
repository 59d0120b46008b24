"""The pictures that a prompt has while its refiner is trained: its first, and those of rewrites."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ine.errors import IneError
from ine.runtime import seed_for
from ine.training.kept_pictures import Wanted

AHEAD = 1
"""Steps that a trainer reads ahead: its loader fetches one batch before the last one is used."""


@dataclass(frozen=True)
class Pool:
    """For every prompt its pictures, each a prompt and a seed; every choice is decided by a seed.

    Source: Jeon et al. 2025, whose release keeps a folder per prompt.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    more: dict[int, list[tuple[int, Wanted]]] = field(default_factory=dict)
    """Pictures beside the first, by the number of the prompt, each with the step that added it."""

    scored: set[int] = field(default_factory=set)
    """Steps whose answers are scored."""

    def of(self, number: int, step: int | None = None) -> list[Wanted]:
        """Return the pictures of a prompt, its own first; with a step those that it may look at.

        A step looks at what was added two steps before it or earlier: when the pictures of a step
        are read, the answers of the step before it are not there yet.
        """
        first = (self.prompts[number], seed_for(self.seed, "first", number) % 2**32)
        added = self.more.get(number, [])
        return [first, *(one for when, one in added if step is None or when + AHEAD < step)]

    def check_ready(self, step: int) -> None:
        """Raise unless all that a step may look at is there.

        Raises:
            IneError: The trainer reads further ahead than it may.
        """
        if (needed := step - 1 - AHEAD) > max(self.scored, default=-1):
            raise IneError(
                f"GRPO: the pictures of step {step} were asked for before the answers of step "
                f"{needed} were scored, so that a resumed run would look at others; this version "
                "of trl or transformers reads too far ahead: install trl 1.16"
            )

    def choose(self, number: int, step: int, place: int = 0) -> Wanted:
        """Return the picture that is looked at in a step, by an answer's place in its group."""
        found = self.of(number, step)
        return found[seed_for(self.seed, "look", number, step, place) % len(found)]

    def add(self, number: int, step: int, rewrites: Sequence[str]) -> Wanted | None:
        """Add a picture of one of a group's rewritten prompts; return it, None without any."""
        if not rewrites:
            return None
        chosen = rewrites[seed_for(self.seed, "rewrite", number, step) % len(rewrites)]
        new = (chosen, seed_for(self.seed, "new", number, step) % 2**32)
        self.more.setdefault(number, []).append((step, new))
        return new

    def pack(self) -> dict[str, Any]:
        """Return what was added, as JSON values."""
        added = {
            str(number): [[step, *one] for step, one in found]
            for number, found in self.more.items()
        }
        return {"more": added, "scored": max(self.scored, default=-1)}

    def unpack(self, packed: dict[str, Any]) -> None:
        """Take over what `pack` returned."""
        self.more.clear()
        for number, added in packed["more"].items():
            self.more[int(number)] = [
                (int(s), (str(prompt), int(seed))) for s, prompt, seed in added
            ]
        self.scored.clear()
        self.scored.update(range(packed["scored"] + 1))
