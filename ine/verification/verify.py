"""Check that an embedding fits a model and is alive there, i.e. has the concept in it.

How far vectors move the noise prediction says nothing: random ones of the same norm move it as
far. But only the concept's vectors explain pictures of the concept. With x_t a noised picture of
the base model and eps its noise,

    c(x, v)    = cos(eps_theta(x_t, "a v") - eps_theta(x_t, "a"), eps - eps_theta(x_t, "a"))
                                                          averaged over timesteps
    recall(v)  = mean c over pictures of the concept
                 - mean c over the same pictures without it

Li et al. 2023 (arXiv 2303.16203) classify with a diffusion model by its error under each class;
here vectors stand for classes, and a cosine for the difference of errors, because vectors without
meaning move predictions by very different amounts. The difference of the two means cancels what
any token does to any picture. The controls are vectors of the same norms without meaning: the
elements of each vector shuffled, and Gaussian ones. An embedding is alive if it recalls more than
every control, by at least `MARGIN` of their standard deviations.

Pictures stay latents: nothing is decoded, no file is written.

Shape letters: N vectors, D text width, P pictures, C latent channels, H W latent size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.embeddings.fit import check_fits
from ine.errors import EmbeddingError
from ine.models.parts import DiffusionParts
from ine.runtime import seed_for
from ine.sampling import SamplerSettings
from ine.text.encode import encode
from ine.verification.examiner import Examiner, Reaction
from ine.verification.subject import Subject
from ine.verification.vectors import (
    Vectors,
    nearest_words,
    random_vectors,
    relative_norms,
    shuffled,
)

MARGIN = 3.0
"""Standard deviations of the controls that a living embedding is above their mean."""

NOTHING = 0.01
"""Share of the token table's median norm below which a vector is as good as zero."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The verdict about an embedding on a model, and the figures behind it."""

    trigger: str
    fits: bool
    alive: bool | None
    """None if it does not fit."""

    verdict: str
    """One line."""

    notes: tuple[str, ...] = ()
    """How the model differs from the one that the embedding was made with."""

    norms: tuple[tuple[float, ...], ...] = ()
    """Norm of each vector over the median norm of the token table, per text encoder."""

    nearest: tuple[tuple[tuple[str, float], ...], ...] = ()
    """The nearest words of each vector and their cosines, first text encoder."""

    subject: str = ""
    embedding: Reaction | None = None
    word: Reaction | None = None
    """The concept's own phrase on the same U-Net."""

    shuffled: tuple[Reaction, ...] = ()
    random: tuple[Reaction, ...] = ()
    margin: float | None = None
    """(recall - mean of the controls) / their standard deviation."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = dict(vars(self))
        for name in ("embedding", "word"):
            plain[name] = vars(plain[name]) if plain[name] else None
        for name in ("shuffled", "random"):
            plain[name] = [vars(r) for r in plain[name]]
        return plain


@torch.no_grad()
def verify_embedding(
    base: DiffusionParts,
    parts: DiffusionParts,
    embedding: ConceptEmbedding,
    subject: Subject,
    *,
    controls: int = 12,
    settings: SamplerSettings | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, wanted: None,
) -> Verification:
    """Return the `Verification` of an embedding on a model.

    Args:
        base: The base model's parts; it makes the pictures.
        parts: The model that the embedding shall act on: the base with unlearned weights applied.
        embedding: The embedding.
        subject: The concept; its prompts say how many pictures are made.
        controls: Shuffled and as many random embeddings to compare with, at least 2.
        settings: For making the pictures. To compare them, the U-Net gets twice the batch at
            once: as many rows as in a guided step.
        seed: Seed of all random numbers.
        progress: Called with (conditions done, conditions wanted).
    """
    if controls < 2:
        raise ValueError(f"{controls} controls have no spread; 2 or more are needed")
    try:
        notes = check_fits(embedding, parts)
    except EmbeddingError as error:
        verdict = f"does not fit: {error}"
        return Verification(trigger=embedding.trigger, fits=False, alive=None, verdict=verdict)
    found = _of_zeros(parts, embedding, subject, notes)
    if max(norm for row in found.norms for norm in row) < NOTHING:
        return found
    examiner = Examiner.prepare(base, parts, subject, settings or SamplerSettings(), seed)
    word, own, rows = _reactions(examiner, embedding, subject, controls, seed, progress)
    alive, margin = judge(own.recall, [r.recall for kind in rows.values() for r in kind])
    return replace(
        found,
        alive=alive,
        verdict=_verdict(alive, margin, subject, bool(notes)),
        embedding=own,
        word=replace(word, move=1.0 if word.move else 0.0),
        shuffled=tuple(rows["shuffled"]),
        random=tuple(rows["random"]),
        margin=margin,
    )


def _of_zeros(
    parts: DiffusionParts, embedding: ConceptEmbedding, subject: Subject, notes: Sequence[str]
) -> Verification:
    """Return the `Verification` of an embedding that fits and whose vectors are zero."""
    return Verification(
        trigger=embedding.trigger,
        fits=True,
        alive=False,
        verdict="fits, but is not alive: its vectors are zero, or as good as that",
        notes=tuple(notes),
        norms=relative_norms(parts, embedding),
        nearest=nearest_words(parts, embedding.vectors[0]),
        subject=subject.name,
    )


def _reactions(
    examiner: "Examiner",
    embedding: ConceptEmbedding,
    subject: Subject,
    controls: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[Reaction, Reaction, dict[str, list[Reaction]]]:
    """Return the reactions to the word, to the embedding and to its controls, by their kind."""
    wanted = 2 * controls + 2
    word = examiner.react(encode(examiner.parts, [subject.word]))
    progress(1, wanted)

    def react(vectors: Vectors) -> Reaction:
        given = {embedding.trigger: vectors}
        condition = encode(examiner.parts, [f"a {embedding.trigger}"], given)
        return examiner.react(condition, word.move)

    own = react(embedding.vectors)
    progress(2, wanted)
    kinds = {"shuffled": shuffled, "random": random_vectors}
    found: dict[str, list[Reaction]] = {kind: [] for kind in kinds}
    for kind, draw in kinds.items():
        for number in range(controls):
            found[kind].append(react(draw(embedding.vectors, seed_for(seed, kind, number))))
            progress(2 + sum(map(len, found.values())), wanted)
    return word, own, found


def judge(recall: float, controls: Sequence[float]) -> tuple[bool, float | None]:
    """Return (alive, margin) of a recall, compared with those of meaningless vectors."""
    given = torch.tensor(controls, dtype=torch.float64)
    spread = float(given.std())
    if not (math.isfinite(recall) and spread > 0):
        return False, None
    margin = (recall - float(given.mean())) / spread
    return recall > max(0.0, float(given.max())) and margin >= MARGIN, margin


def _verdict(alive: bool, margin: float | None, subject: Subject, noted: bool) -> str:
    there = "fits, with notes," if noted else "fits"
    if alive:
        return f"{there} and is alive: it recalls {subject.name!r}, {margin:.1f} sd above chance"
    if margin is None:
        return f"{there} but is not alive: the U-Net's reaction is not a number, or always the same"
    return (
        f"{there} but is not alive: it recalls {subject.name!r} no better than meaningless vectors "
        f"do ({margin:+.1f} sd, {MARGIN:g} are needed)"
    )
