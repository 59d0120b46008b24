"""Make pairs for DUO: a picture with the concept, and the same picture edited until it has lost it.

The base draws the first from the prompts with the concept; the recipe's rule must fire. The second
is an SDEdit of it towards the prompt without the concept and away from the one with it, repeated
until the rule no longer fires (Park et al. 2024). A pair then differs in the concept and little
else, and only that difference is unlearned.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ine.detectors.table import Detector
from ine.errors import PicturesError
from ine.inversion.images import ConceptPictures, join_pictures
from ine.models.parts import DiffusionParts
from ine.recipe import ConceptRecipe
from ine.unlearning.duo_units import PairMaker, Pending


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Latents of pictures with the concept and of the same pictures without it."""

    unsafe: ConceptPictures
    safe: ConceptPictures
    """`safe.names[i]` is `unsafe.names[i]`."""

    tried: int = 0
    """Pictures made to find them."""

    edits: int = 0
    """Edits made to find them."""

    @property
    def count(self) -> int:
        """Number of pairs."""
        return self.unsafe.count


def make_pairs(
    base: DiffusionParts,
    recipe: ConceptRecipe,
    detector: Detector,
    count: int,
    *,
    strength: float = 0.75,
    scale: float = 7.5,
    tries: int = 4,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Pairs:
    """Make pairs in units of the recipe's `pictures.batch`.

    Args:
        base: The base model's parts, before unlearning.
        recipe: The concept, with an `erase` section; pictures are sampled and recognised as its
            `pictures` section says.
        detector: A detector with the rule's labels.
        count: Pairs to find.
        strength: Share of the steps that an edit takes.
        scale: Classifier-free guidance scale of an edit.
        tries: At most `tries * count` pictures are made, and `tries` edits of each.
        seed: Seed of all random numbers.
        folder: Cache folder; finished units are kept as latents and not made again.
        progress: Called with (pairs found, pairs wanted, pictures tried) after every unit.

    Raises:
        PicturesError: Too few pairs were found.
    """
    maker = PairMaker(base, recipe, detector, strength, scale, seed, folder)
    search = _Search(maker, count, tries)
    while len(search.found) < count:
        if search.wants_pictures():
            search.show()
        elif search.queue:
            search.edit()
        else:
            raise PicturesError(f"{recipe.name}: {search.shortage()}")
        if progress:
            progress(min(len(search.found), count), count, search.tried)
    return search.pairs()


@dataclass
class _Search:
    """The pairs found so far, and the pictures that still need an edit."""

    maker: PairMaker
    count: int
    tries: int
    found: list[tuple[ConceptPictures, ConceptPictures]] = field(default_factory=list)
    """(unsafe, safe), one picture each."""

    queue: deque[Pending] = field(default_factory=deque)
    tried: int = 0
    """Pictures made."""

    shown: int = 0
    """Of them those that show the concept."""

    edits: int = 0
    units: int = 0
    """Units of edits."""

    def wants_pictures(self) -> bool:
        """Return whether another unit of pictures may and should be made.

        Edits come in whole units as long as there are enough pictures to fill one.
        """
        waiting = len(self.queue)
        short = waiting < self.maker.batch and len(self.found) + waiting < self.count
        return short and self.tried < self.tries * self.count

    def show(self) -> None:
        """Make a unit of pictures; those that show the concept wait for an edit."""
        unit = self.maker.concept(self.tried)
        self.tried += self.maker.batch
        self.shown += unit.count
        self.queue.extend(Pending(unit.of([i])) for i in range(unit.count))

    def edit(self) -> None:
        """Edit a unit of waiting pictures; those that still show the concept wait again."""
        waiting = min(self.maker.batch, len(self.queue))
        pending = [self.queue.popleft() for _ in range(waiting)]
        safe = self.maker.edit(self.units, pending)
        self.units += 1
        self.edits += len(pending)
        rows = {name: safe.of([i]) for i, name in enumerate(safe.names)}
        for one in pending:
            row = rows.get(one.picture.names[0])
            if row is not None:
                self.found.append((one.picture, row))
            elif one.attempt + 1 < self.tries:
                self.queue.append(Pending(one.picture, one.attempt + 1))

    def shortage(self) -> str:
        """Return what was found and what to do, for the error about too few pairs."""
        found, maker = len(self.found), self.maker
        return (
            f"found {found} of {self.count} pairs: of {self.tried} pictures made by "
            f"{maker.base.name} {self.shown} show the concept by rule {maker.rule.name}, and in "
            f"{self.edits} edits, at most {self.tries} of each, {found} lost it; change "
            "erase.concepts or erase.targets, a larger erase.duo.strength or erase.duo.tries, or "
            "fewer --pairs"
        )

    def pairs(self) -> Pairs:
        """Return the pairs that are wanted."""
        wanted = self.found[: self.count]
        return Pairs(
            unsafe=join_pictures([unsafe for unsafe, _ in wanted]),
            safe=join_pictures([safe for _, safe in wanted]),
            tried=self.tried,
            edits=self.edits,
        )
