"""Several concepts, each with a guidance of its own that acts on the pictures of that concept.

A gate that tells concepts apart says per picture which of them it found (`Step.found`). With M_c
the prediction of concept c's guidance, eps that of the undefended model and F what was found,

    eps* = eps + sum over c in F of (M_c - eps)

so that a picture of one concept gets exactly what that concept's guidance alone would give it,
and a picture of none is undefended. In a restarted picture, F is what earlier attempts found;
without any such gate every concept's guidance acts.

Shape letter: B pictures.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError, did_you_mean
from ine.guidance.any_gate import named
from ine.guidance.cfg import undefended
from ine.guidance.gates import remembering
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import (
    Cost,
    Guidance,
    Notes,
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.text.condition import Condition


@dataclass(frozen=True)
class PerConcept(Method):
    """A guidance per concept, without gates."""

    concepts: tuple[str, ...]
    """Names, as a gate's probes have them."""

    guidances: tuple[Guidance, ...]
    """As many, in the same order."""

    def __post_init__(self) -> None:
        """Raise `IneError` for guidances that cannot act beside one another."""
        if not self.concepts or len(self.concepts) != len(self.guidances):
            raise IneError(
                f"{len(self.concepts)} concepts and {len(self.guidances)} guidances; give one each"
            )
        if len(set(self.concepts)) < len(self.concepts):
            raise IneError(f"two guidances are for the same concept: {', '.join(self.concepts)}")
        for guidance in self.guidances:
            if guidance.reads_prompts:
                raise IneError(
                    f"several concepts: {type(guidance).__name__} rewrites the prompts, so that it "
                    "cannot be added to another guidance; use additive, contextual, cfg or sld"
                )
            if guidance.split()[1] is not None:
                raise IneError("several concepts share one gate; give guidances without gates")

    @property
    def negative(self) -> Negative:  # type: ignore[override]
        """All negatives in one, for logs and checks."""
        own = [guidance.negative for guidance in self.guidances]
        texts = [negative.text for negative in own if negative.text]
        embeddings = tuple(e for negative in own for e in negative.embeddings)
        return Negative(", ".join(dict.fromkeys(texts)), tuple(dict.fromkeys(embeddings)))

    def cost(self, scale: float, steps: int) -> Cost:
        """Return the cost of a picture of all concepts, the most."""
        own = [guidance.cost(scale, steps).nfe for guidance in self.guidances]
        plain = (1 if scale == 1 else 2) * steps
        return Cost(plain + sum(max(nfe - plain, steps) for nfe in own), exact=False)

    def with_fixed_strength(self, scale: float) -> Self:
        """Return it with every strength written out as a number."""
        return self._each(tuple(g.with_fixed_strength(scale) for g in self.guidances))

    def scaled(self, factor: float) -> Self:
        """Return it with every strength multiplied."""
        return self._each(tuple(g.scaled(factor) for g in self.guidances))

    def with_embedding(self, embedding: ConceptEmbedding) -> Self:
        """Return it with one more embedding to steer away from, for the concept that it names."""
        if embedding.concept not in self.concepts:
            raise IneError(
                f"embedding {embedding.trigger!r} is of {embedding.concept!r}"
                f"{did_you_mean(embedding.concept, self.concepts)}; the concepts are "
                f"{', '.join(self.concepts)}"
            )
        place = self.concepts.index(embedding.concept)
        changed = list(self.guidances)
        changed[place] = changed[place].with_embedding(embedding)
        return self._each(tuple(changed))

    def _each(self, guidances: tuple[Guidance, ...]) -> Self:
        return replace(self, guidances=guidances)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Begin the guidance of every concept."""
        with ExitStack() as stack:
            yield _Session(
                concepts=self.concepts,
                sessions=[stack.enter_context(g.begin(prompts)) for g in self.guidances],
                positive=prompts.positive(),
                empty=prompts.empty(),
                scale=prompts.scale,
                before=prompts.found,
            )


@dataclass(frozen=True, kw_only=True)
class _Session(MethodSession):
    concepts: tuple[str, ...]
    sessions: list[Session]
    positive: Condition
    empty: Condition
    scale: float
    before: tuple[frozenset[str], ...] | None
    """Per picture, the concepts that earlier attempts found."""

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        everyone = tuple(range(len(self.positive)))
        rows = everyone if pictures is None else pictures
        query_unet = remembering(query_unet, len(everyone))
        acting = {c: self._acting(step, c, rows) for c in self.concepts}
        plain = self._plain(query_unet, pictures)
        output, touched = plain.clone(), set[int]()
        for concept, session in zip(self.concepts, self.sessions, strict=True):
            mine = acting[concept]
            if not mine:
                continue
            asked = None if mine == everyone else mine
            steered = session.predict(step, named(query_unet, concept), asked)
            for i, own in zip(mine, steered, strict=True):
                place = rows.index(i)
                # Alone it is exactly that guidance's prediction.
                output[place] = output[place] + own - plain[place] if i in touched else own
                touched.add(i)
        return output

    def _acting(self, step: Step, concept: str, rows: Sequence[int]) -> tuple[int, ...]:
        """Return the pictures that a concept's guidance acts on."""
        found = self.before if step.found is None else step.found
        return tuple(i for i in rows if found is None or concept in found[i])

    def _plain(self, query_unet: QueryUNet, pictures: tuple[int, ...] | None) -> torch.Tensor:
        if self.scale == 1:
            return query_unet([UNetQuery.of("positive", self.positive, pictures)])["positive"]
        return undefended(query_unet, self.empty, self.positive, self.scale, pictures)

    def notes(self) -> list[Notes]:
        """Return the notes of every concept's guidance, by concept where there are any."""
        rows = zip(*(session.notes() for session in self.sessions), strict=True)
        return [
            {c: note for c, note in zip(self.concepts, notes, strict=True) if note}
            for notes in rows
        ]
