"""The pictures that a prompt has while its refiner is trained: its first, and those of rewrites."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ine.runtime import seed_for
from ine.training.kept_pictures import Wanted


@dataclass(frozen=True)
class Pool:
    """For every prompt its pictures, each a prompt and a seed; every choice is decided by a seed.

    Source: Jeon et al. 2025, whose release keeps a folder per prompt.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    more: dict[int, list[Wanted]] = field(default_factory=dict)
    """Pictures beside the first, by the number of the prompt."""

    def of(self, number: int) -> list[Wanted]:
        """Return the pictures of a prompt, its own first."""
        first = (self.prompts[number], seed_for(self.seed, "first", number) % 2**32)
        return [first, *self.more.get(number, [])]

    def choose(self, number: int, step: int, place: int = 0) -> Wanted:
        """Return the picture that is looked at in a step, by an answer's place in its group."""
        found = self.of(number)
        return found[seed_for(self.seed, "look", number, step, place) % len(found)]

    def add(self, number: int, step: int, rewrites: Sequence[str]) -> Wanted | None:
        """Add a picture of one of a group's rewritten prompts; return it, None without any."""
        if not rewrites:
            return None
        chosen = rewrites[seed_for(self.seed, "rewrite", number, step) % len(rewrites)]
        new = (chosen, seed_for(self.seed, "new", number, step) % 2**32)
        self.more.setdefault(number, []).append(new)
        return new

    def pack(self) -> dict[str, Any]:
        """Return what was added, as JSON values."""
        return {str(number): [list(one) for one in added] for number, added in self.more.items()}

    def unpack(self, packed: dict[str, Any]) -> None:
        """Take over what `pack` returned."""
        self.more.clear()
        for number, added in packed.items():
            self.more[int(number)] = [(str(prompt), int(seed)) for prompt, seed in added]
