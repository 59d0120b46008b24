"""SAFREE's rewriting of one prompt: trigger tokens projected out, and for how many steps.

Formulas and sources: `ine.guidance.safree`. Shape letters: B pictures, L tokens of the context, D
text width, n tokens of a prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ine.guidance.safree_subspace import Vectors, pooled_states, projector
from ine.models.parts import DiffusionParts


def distances(pooled: torch.Tensor, concept: torch.Tensor) -> torch.Tensor:
    """Return how far pooled states are from the concept, ||(I - P_C) p_i||, (n,) float64.

    Args:
        pooled: (n, D).
        concept: P_C, (D, D).
    """
    pooled = pooled.to(concept)
    return (pooled - pooled @ concept).norm(dim=1)


def find_triggers(
    far: torch.Tensor, whole: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (which tokens are triggers (n,) bool, d_i / mean of the others (n,) float64).

    A prompt of one token has no others. Its masked prompt is then compared with the prompt
    itself: a trigger is a token without which the prompt is further from the concept. On the
    bundled model with the words of `fire` this ratio is 4.7 for "fire" and 5.6 for "flames",
    below 1 for "dog" and "candle", 1.9 for "car".

    Args:
        far: d of the masked prompts, (n,); n may be 0.
        whole: d of the prompt itself, a scalar; looked at when n is 1.
        alpha: How much further than the mean a trigger is, as a share of the mean.
    """
    count = len(far)
    others = (far.sum() - far) / (count - 1) if count > 1 else whole.expand(count).to(far)
    return far >= (1 + alpha) * others, far / others.clamp_min(torch.finfo(far.dtype).tiny)


def project(states: torch.Tensor, concept: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Return (I - P_C) P_I c_i for states c_i, (..., D) in the dtype of `states`.

    Args:
        states: (..., D).
        concept: P_C, (D, D) float64.
        prompt: P_I, (D, D) float64.
    """
    within = states.to(prompt) @ prompt
    return (within - within @ concept).to(states.dtype)


def change(states: torch.Tensor, projected: torch.Tensor) -> float:
    """Return beta = 1 - mean cosine of states with what they became, both (n, D); in [0, 2]."""
    cosines = torch.nn.functional.cosine_similarity(states.double(), projected.double(), dim=-1)
    return 1 - cosines.mean().item() if len(cosines) else 0.0


def last_step(beta: float, k: float, t: float, up_t: int) -> int:
    """Return round(up_t sigmoid(2 k (10 beta - t))), the last step that uses the new states."""
    # As tanh the logistic function cannot overflow.
    return round(up_t * (0.5 + 0.5 * math.tanh(k * (10 * beta - t))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewrite:
    """A prompt that SAFREE has rewritten."""

    triggers: tuple[int, ...]
    """Positions of the trigger tokens in the context; the start-of-text token is 0."""

    ratios: tuple[float, ...]
    """d_i / mean of the others for every token, n numbers."""

    beta: float
    """How much the projection of all tokens would change the prompt, in [0, 2]."""

    states: torch.Tensor
    """The text states with those of the triggers projected, (L, D)."""

    words: tuple[str, ...] = ()
    """The trigger tokens, for logs."""


def rewrite(
    parts: DiffusionParts,
    text: str,
    states: torch.Tensor,
    concept: torch.Tensor,
    alpha: float,
    vectors: Vectors | None = None,
    as_released: bool = False,
) -> Rewrite:
    """Return the `Rewrite` of one prompt.

    An empty prompt has no token that could be a trigger: beta is 0, states as given. Of one that
    is too long, the tokens that the model reads are looked at, as in the paper.

    Args:
        parts: The model.
        text: The prompt.
        states: Its text states, (L, D).
        concept: P_C, (D, D) float64.
        alpha: See `find_triggers`.
        vectors: {trigger: vectors} where the prompt has learned vectors in it; its `states` were
            then made with them.
        as_released: As in `pooled_states`; only the second encoder's part of the states changes.
    """
    pooled, ids = pooled_states(parts, text, vectors, masked=True, as_released=as_released)
    if not len(ids):
        return Rewrite(triggers=(), ratios=(), beta=0.0, states=states)
    far = distances(pooled, concept)
    found, ratios = find_triggers(far[1:], far[0], alpha)
    part = states[:, -pooled.shape[1] :]
    projected = project(part, concept, projector(pooled[1:].T))
    seen = slice(0, len(ids) + 2)
    places = (found.nonzero().flatten() + 1).tolist()
    new = states.clone()
    new[places, -pooled.shape[1] :] = projected[places]
    return Rewrite(
        triggers=tuple(places),
        ratios=tuple(ratios.tolist()),
        beta=change(part[seen], projected[seen]),
        states=new,
        words=tuple(parts.tokenizers[0].decode([int(ids[p - 1])]).strip() for p in places),
    )


def rewrite_all(
    parts: DiffusionParts,
    texts: Sequence[str],
    states: torch.Tensor,
    concept: torch.Tensor,
    alpha: float,
    vectors: Vectors | None = None,
    as_released: bool = False,
) -> list[Rewrite]:
    """Return the `Rewrite` of every prompt; equal prompts are rewritten once.

    One encoder call per prompt, so that what is found does not depend on its neighbours.
    """
    known: dict[str, Rewrite] = {}
    for text, rows in zip(texts, states, strict=True):
        if text not in known:
            known[text] = rewrite(parts, text, rows, concept, alpha, vectors, as_released)
    return [known[text] for text in texts]
