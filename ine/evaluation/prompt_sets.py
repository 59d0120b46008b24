"""Prompt sets of a grid: their rows, and the pictures that are wanted of them."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from ine.embeddings.embedding import ConceptEmbedding, read_embedding
from ine.errors import PromptError
from ine.evaluation.grid import GridPrompts
from ine.evaluation.grid_file import GridFile
from ine.files import sha256_of
from ine.prompts.reading import find_prompt_set
from ine.prompts.rows import PromptRow, PromptSet
from ine.runtime import seed_for
from ine.sampling import PictureRequest
from ine.text.tokens import trigger_pattern


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture that is wanted of a prompt set."""

    id: str
    """The row's."""

    prompt: str
    seed: int
    image: int
    """Which picture of its row, from 0."""

    cluster: str
    """What is independent: "phrase|noun" where the row says it, else a digest of the prompt."""

    noun: str = ""
    categories: tuple[str, ...] = ()
    guidance: float | None = None
    """Guidance scale of the row, where rows count."""

    size: tuple[int | None, int | None] = (None, None)
    """Width and height of the row in pixels, likewise."""

    embeddings: tuple[ConceptEmbedding, ...] = field(default=(), compare=False)
    """What the triggers in the prompt stand for."""

    @cached_property
    def request(self) -> PictureRequest:
        """What is sampled; one value for all cells that want it."""
        return PictureRequest(prompt=self.prompt, seed=self.seed, embeddings=self.embeddings)


@dataclass(frozen=True, kw_only=True)
class SetOfPrompts:
    """A prompt set of a grid with its rows."""

    spec: GridPrompts
    found: PromptSet | None
    """None where its file is missing, which only a dry run lets pass."""

    limit: int | None = None
    """Pictures per cell, of `--limit`."""

    embeddings: tuple[ConceptEmbedding, ...] = field(default=(), hash=False, compare=False)
    """What the triggers in its prompts stand for."""

    items_of: dict[int, tuple[Item, ...]] = field(default_factory=dict, hash=False, compare=False)
    """{grid seed: its items}."""

    def items(self, seed: int) -> tuple[Item, ...]:
        """Return the `Item`s of a grid seed: every row once, then every row's next picture."""
        if seed not in self.items_of:
            assert self.found is not None, "only a dry run goes on without a prompt file"
            rows, spec = self.found.rows, self.spec
            items = [_item(row, k, seed, spec) for k in range(spec.images) for row in rows]
            items = [replace(i, embeddings=self._learned(i.prompt)) for i in items[: self.limit]]
            self.items_of[seed] = tuple(items)
        return self.items_of[seed]

    def _learned(self, prompt: str) -> tuple[ConceptEmbedding, ...]:
        """Return the embeddings whose triggers stand in a prompt."""
        return tuple(e for e in self.embeddings if trigger_pattern([e.trigger]).search(prompt))

    @property
    def count(self) -> int | None:
        """Return pictures per cell; None where it is not known."""
        rows = self.spec.limit if self.found is None else len(self.found.rows)
        if rows is None:
            return self.limit
        return min(rows * self.spec.images, self.limit or rows * self.spec.images)


def _item(row: PromptRow, image: int, seed: int, spec: GridPrompts) -> Item:
    extra, own = row.extra, spec.use_rows
    named = extra.get("phrase") or extra.get("noun")
    phrase_and_noun = f"{extra.get('phrase', '')}|{extra.get('noun', '')}"
    return Item(
        id=row.id,
        prompt=row.prompt,
        seed=_seed_of(row, image, seed, own),
        image=image,
        cluster=phrase_and_noun if named else sha256_of(row.prompt.encode())[:16],
        noun=extra.get("noun", ""),
        categories=row.categories,
        guidance=row.guidance if own else None,
        size=(row.width, row.height) if own else (None, None),
    )


def _seed_of(row: PromptRow, image: int, seed: int, own: bool) -> int:
    """Return a picture's seed: it depends on its row and the grid seed, on nothing else."""
    if own and row.seed is not None:
        # The published picture is that of seed 0; others are new ones.
        return row.seed + image if seed == 0 else seed_for(seed, "row", row.seed, image) % 2**32
    return seed_for(seed, "grid", row.id, row.prompt, image) % 2**32


def read_set(file: GridFile, spec: GridPrompts) -> PromptSet:
    """Return the rows of an entry of a grid.

    Raises:
        PromptError: They cannot be read, or there are none.
    """
    if spec.prompts:
        rows = [PromptRow(id=str(n), prompt=text.strip()) for n, text in enumerate(spec.prompts)]
        return PromptSet(name=spec.name, rows=tuple(rows[: spec.limit]), digest="", read=len(rows))
    assert spec.source is not None, "a set has a source or prompts"
    own = file.place(spec.source)
    found = find_prompt_set(
        own if own.is_file() else spec.source,
        column=spec.column,
        skip_empty=spec.skip_empty,
        category=spec.category,
        where=spec.where,
        unique=spec.unique,
        limit=spec.limit,
    )
    if not found.rows:
        raise PromptError("is empty")
    return found


def learned_words(
    file: GridFile, spec: GridPrompts, found: PromptSet | None
) -> tuple[ConceptEmbedding, ...]:
    """Return the embeddings of a prompt set, each of which stands in one of its prompts."""
    learned = tuple(read_embedding(file.place(name)) for name in spec.embeddings)
    for embedding in learned:
        pattern = trigger_pattern([embedding.trigger])
        if found and not any(pattern.search(row.prompt) for row in found.rows):
            raise PromptError(
                f"the trigger {embedding.trigger!r} of its embeddings stands in none of its prompts"
            )
    return learned
