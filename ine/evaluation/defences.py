"""The rows of a study: what stands in the negative slot, and how it acts."""

from dataclasses import dataclass

import torch

from ine.embedding import new_embedding
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.runtime import generator_for


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One row."""

    name: str
    """Short and unique; also the name of its cache files."""

    label: str
    """What the report calls it."""

    guidance: object
    """A `Guidance`, or None for the undefended model."""


UNDEFENDED = Defence(name="undefended", label="undefended", guidance=None)


def by_text(name, text, strength=None, label=None):
    """Return a defence with negative words; `strength` chooses the additive form."""
    negative = Negative(text)
    return _row(name, label or f'words "{text}"', negative, strength)


def by_embedding(name, embedding, strength=None, label=None):
    """Return a defence with an embedding as the negative."""
    shown = label or f"embedding n={embedding.count}"
    return _row(name, shown, Negative("", (embedding,)), strength)


def _row(name, label, negative, strength):
    if strength is None:
        return Defence(name=name, label=f"{label}, CFG", guidance=ClassifierFree(negative))
    return Defence(
        name=f"{name}-s{strength:g}",
        label=f"{label}, additive s={strength:g}",
        guidance=Additive(negative, strength),
    )


def random_like(embedding, seed=0):
    """Return random vectors with the norms of an embedding: the control that must not defend."""
    vectors = []
    for number, given in enumerate(embedding.vectors):
        noise = torch.randn(given.shape, generator=generator_for(seed, "random", number))
        vectors.append(noise / noise.norm(dim=1, keepdim=True) * given.norm(dim=1, keepdim=True))
    return new_embedding(tuple(vectors), embedding.trigger, "random")
