"""SAFREE: take an unsafe subspace out of the prompt's text states, at the early steps.

Yoon et al. 2024 (arXiv 2410.12761), sections 3.2 and 3.3, where paper and released code differ
after the code (commit b8b2c3f). With C (D, K) the pooled states of the concept, p_i the pooled
state of the prompt with token i masked, I (D, n) = [p_1 ... p_n], c_i the text state of token i:

    P_C = C (C^T C)^+ C^T,   P_I likewise
    d_i = ||(I - P_C) p_i||
    token i is a trigger     if d_i >= (1 + alpha) mean of d_j over j != i
    its state becomes        (I - P_C) P_I c_i;  other states stay
    beta = 1 - mean cos((I - P_C) P_I c_i, c_i)  over start, all tokens (triggers or not) and end
    last = round(up_t sigmoid(2 k (10 beta - t)))
    steps 0 .. last use the new states, later ones the prompt's own

A pooled state is the state at the end of the text, of the layer that the U-Net reads: the last
with its norm for models of one encoder, which is what `CLIPTextModel` calls its pooler output; for
SDXL the layer before the last of both encoders, side by side, as its text states are. SDXL's own
pooled embedding stays the prompt's. The rest is classifier-free guidance.

The released code for SDXL is another one, which `as_released` gives: both subspaces are spanned by
the second encoder's projected embeddings (its `text_embeds`), only that encoder's part of the text
states is projected, and there is no filter: the new states are used at all steps. It is not the
default, since the U-Net reads the first encoder's states too, which stay as they were, and since
the embeddings lie behind a linear layer, in other coordinates than the states that are projected.
For models of one encoder the released code is what stands above.

What is ours: state per picture, so a batch equals its pictures; embeddings as the subspace; the
concept's subspace and the CFG negative slot are two fields, where the released code puts its
phrases in both; a prompt of one token, an empty one and one that is too long are defined (see
`find_triggers` and `rewrite` in `ine.guidance.safree_rewrite`); a picture without a trigger makes
exactly plain guidance's call.

Shape letters: B pictures, L tokens of the context, D text width, n tokens of a prompt, K columns.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError, did_you_mean
from ine.guidance.method import Method
from ine.guidance.negative import Negative
from ine.guidance.protocol import Cost, Prompts, Session
from ine.guidance.reattention import Reattention
from ine.guidance.safree_rewrite import Rewrite, last_step, rewrite_all
from ine.guidance.safree_session import SafreeSession
from ine.guidance.safree_subspace import COLUMNS, concept_columns, projector, released_part
from ine.models.parts import DiffusionParts
from ine.text.syntax import is_weighted


@dataclass(frozen=True)
class Safree(Method):
    """SAFREE's settings; the constants are those that its authors fitted for nudity."""

    reads_prompts: ClassVar[bool] = True

    negative: Negative = field(default_factory=Negative)
    """What stands in the CFG negative slot; nothing by default. The released code has the phrases
    here as well: see `safree_against`."""

    phrases: tuple[str, ...] = ()
    """Texts that span the concept."""

    embeddings: tuple[ConceptEmbedding, ...] = ()
    """Embeddings that span the concept, beside the phrases."""

    columns: str = "pooled"
    """A name of `COLUMNS`."""

    alpha: float = 0.01
    """Tolerance of the trigger test, >= 0."""

    k: float = 2.5
    """Slope of the filter, > 0; the authors' value for artists is 3.5."""

    t: float = 5.333
    """Midpoint of the filter in units of 10 beta; artists 5.5."""

    up_t: int = 10
    """The largest number the filter returns, in steps; the authors' runs have 50."""

    validate: bool = True
    """Whether the filter is used; without it trigger tokens stay projected at all steps."""

    as_released: bool = False
    """On SDXL, do as the released code does there; see the head of this file."""

    reattention: Reattention | None = None
    """Latent re-attention; three U-Net rows instead of two where the new states are used."""

    def __post_init__(self) -> None:
        """Raise `IneError` if there is nothing to project away or a number makes no sense."""
        if isinstance(self.phrases, str):
            raise IneError("SAFREE: phrases is one text; give a list of phrases")
        object.__setattr__(self, "phrases", tuple(self.phrases))
        object.__setattr__(self, "embeddings", tuple(self.embeddings))
        if self.reattention in (True, False):
            object.__setattr__(self, "reattention", Reattention() if self.reattention else None)
        if not any(p.strip() for p in self.phrases) and not self.embeddings:
            raise IneError(
                "SAFREE: nothing says what to remove from the prompt; give phrases or an embedding"
            )
        if self.columns not in COLUMNS:
            hint = did_you_mean(self.columns, COLUMNS)
            raise IneError(
                f"SAFREE: columns {self.columns!r} is unknown{hint}; known: {', '.join(COLUMNS)}"
            )
        for name, fine, expected in (
            ("alpha", self.alpha >= 0, "0 or more"),
            ("k", self.k > 0, "more than 0"),
            ("t", True, "a number"),
            ("up_t", self.up_t >= 0, "0 or more steps"),
        ):
            value = getattr(self, name)
            if not (fine and math.isfinite(value)):
                raise IneError(f"SAFREE: {name} is {value:g}; give {expected}")

    def cost(self, scale: float, steps: int) -> Cost:
        """Return two evaluations per step; re-attention adds one where new states are used."""
        return Cost(2 * steps, exact=self.reattention is None)

    def with_embedding(self, embedding: ConceptEmbedding) -> Self:
        """Return it with one more embedding, in the negative and in the subspace."""
        negative = self.negative.joined(embedding)
        return replace(self, negative=negative, embeddings=(*self.embeddings, embedding))

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the fields that do not hold the concept, and "slot" of `safree_against`."""
        held = ("phrases", "embeddings")
        return (*(name for name in super().settings() if name not in held), "slot")

    @classmethod
    def build(cls, negative: Negative, preset: str | None, settings: dict[str, Any]) -> "Safree":
        """Return `safree_against` the negative."""
        return safree_against(negative, **settings)

    def concept(self, parts: DiffusionParts) -> torch.Tensor:
        """Return P_C of a model, (D, D) float64.

        Raises:
            IneError: The concept spans the model's whole width.
        """
        phrases = [p for p in self.phrases if p.strip()]
        columns = concept_columns(parts, phrases, self.embeddings, self.columns, self.as_released)
        found = projector(columns)
        rank = round(float(found.trace()))
        if rank == len(found):
            raise IneError(
                f"SAFREE: {rank} phrases and vectors span the whole text width of {parts.name}, "
                "so nothing would be left of a prompt; give fewer"
            )
        return found

    def _check_reading(self, prompts: Prompts) -> None:
        """Refuse prompts whose pooled states differ from the states that are projected."""
        reading = prompts.reading
        if reading.clip_skip != 1:
            raise IneError(
                f"SAFREE: clip skip is {reading.clip_skip}; it is defined on the last layer of the "
                "text encoder; leave it out, or use cfg, additive or sld"
            )
        texts = [*prompts.texts, self.negative.prompt(), *self.phrases]
        weighted = [t for t in texts if reading.weights and is_weighted(t)]
        if weighted:
            raise IneError(
                f"SAFREE: {weighted[0][:60]!r} has weights, which it knows nothing about; leave "
                "them out (a bracket that is meant as one is written \\( or \\[), or use cfg, "
                "additive or sld"
            )

    def last(self, rewritten: Rewrite, count: int) -> int:
        """Return the last step that uses a rewrite, of a run of `count`; -1 for none."""
        if not rewritten.triggers:
            return -1
        if not self.validate:
            return count - 1
        return last_step(rewritten.beta, self.k, self.t, self.up_t)

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts and negative, and rewrite the prompts, once.

        Raises:
            IneError: A prompt or the negative has weights, or a layer is skipped.
        """
        self._check_reading(prompts)
        positive = prompts.positive()
        with torch.no_grad():
            concept = self.concept(prompts.parts)
        # Gradients reach learned words in the prompts through their states; which tokens are
        # triggers, and what is projected off, is as if it were constant.
        rewrites = rewrite_all(
            *(prompts.parts, prompts.words(), positive.states, concept, self.alpha),
            vectors=prompts.vectors,
            as_released=self.as_released,
        )
        # The released code for SDXL has no filter.
        unfiltered = released_part(prompts.parts, self.as_released)
        own = replace(self, validate=False) if unfiltered else self
        yield SafreeSession(
            validate=own.validate,
            last=own.last,
            reattention=own.reattention,
            unet=prompts.parts.unet,
            positive=positive,
            rewritten=replace(positive, states=torch.stack([r.states for r in rewrites])),
            rewrites=rewrites,
            negative=self.negative.condition(prompts),
            scale=prompts.scale,
        )


def safree_against(negative: Negative, slot: bool = True, **settings: Any) -> Safree:
    """Return a `Safree` whose subspace is what a negative holds.

    Args:
        negative: Its text is cut into phrases at commas.
        slot: Whether it stands in the CFG negative slot too, as in the released code.
        settings: Other fields of `Safree`.
    """
    known = [e.trigger.lower() for e in negative.embeddings]
    phrases = [p.strip() for p in negative.text.split(",")]
    phrases = [p for p in dict.fromkeys(phrases) if p and p.lower() not in known]
    return Safree(
        negative=negative if slot else Negative(),
        phrases=tuple(phrases),
        embeddings=tuple(negative.embeddings),
        **settings,
    )
