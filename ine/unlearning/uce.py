"""UCE: unified concept editing, a closed form on the keys and values of cross-attention.

    W' = (lam W + s_e W T'E + s_p W P'P) (lam I + s_e E'E + s_p P'P)^-1

Gandikota et al. 2024, eq. 7 (transposes written '). Rows of E are text states of the concept,
the same rows of T the states that replace them, rows of P states to preserve. Three variants:

| variant | E and T | P | scales |
|---|---|---|---|
| `sequence` | from the concept's first word on, paired by `align` | all | of means over rows |
| `paper` | from the last word to the end of the padding, in order | all, of "" too | of sums |
| `last-token` | the last word | the last word | of sums |

`sequence` is our own variant, not published. `paper` is the authors' `train_erase.py` (commit
35e91e2, technique "replace"), which made the published models, `last-token` their
`uce_sd_erase.py` (28c81ed). Information about a concept sits in all tokens after it, so a variant
that edits few of them leaves much of it.

Shape letters: D text width, O output width of a projection, K tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ine.models.parts import DiffusionParts
from ine.text.encode import encode
from ine.text.tokens import tokenize
from ine.unlearning.pairs import EraseTexts


@dataclass(frozen=True, kw_only=True)
class UceSettings:
    """Strengths of the edit; None is the variant's own, see `DEFAULTS`."""

    erase_scale: float | None = None
    """Weight s_e of the concept's tokens. More erases more."""

    preserve_scale: float | None = None
    """Weight s_p of the preserved tokens."""

    ridge: float | None = None
    """Weight lam of keeping the weights as they are; also keeps the system regular."""

    variant: Literal["sequence", "paper", "last-token"] = "sequence"
    """Which tokens are edited and preserved, see the head of this file."""

    def resolved(self, preserved: int = 0) -> "UceSettings":
        """Return the settings with every strength a number.

        Args:
            preserved: Prompts to preserve; "paper" weighs them by their number.
        """
        own = dict(DEFAULTS[self.variant])
        if own["preserve_scale"] is None:
            own["preserve_scale"] = max(0.1, 1 / (1 + preserved))
        given = {key: getattr(self, key) for key in own}
        return replace(self, **own | {k: v for k, v in given.items() if v is not None})


DEFAULTS: dict[str, dict[str, float | None]] = {
    "sequence": {"erase_scale": 0.2, "preserve_scale": 1.0, "ridge": 0.01},
    "paper": {"erase_scale": 1.0, "preserve_scale": None, "ridge": 0.5},
    "last-token": {"erase_scale": 1.0, "preserve_scale": 1.0, "ridge": 0.5},
}
"""Variant -> strengths, those of the published scripts for theirs. None: max(.1, 1 / N) for N
prompts to preserve, the empty one with them, as `train_erase.py`."""


def edited(
    weight: torch.Tensor,
    concept: torch.Tensor,
    target: torch.Tensor,
    preserve: torch.Tensor,
    settings: UceSettings,
) -> torch.Tensor:
    """Return W' for one projection, (O, D) float64.

    Args:
        weight: W, (O, D).
        concept: E, (K, D).
        target: T, (K, D).
        preserve: P, (K', D); may be empty.
        settings: `UceSettings`.
    """
    settings = settings.resolved()
    assert settings.erase_scale is not None
    assert settings.preserve_scale is not None
    w, e, t, p = (x.double() for x in (weight, concept, target, preserve))
    # The published scripts sum over rows, so that there each prompt more counts more.
    averaged = settings.variant == "sequence"
    erase = settings.erase_scale / (max(1, len(e)) if averaged else 1)
    keep = settings.preserve_scale / (max(1, len(p)) if averaged else 1)
    eye = torch.eye(w.shape[1], dtype=torch.float64, device=w.device)
    gram_kept = keep * p.T @ p + settings.ridge * eye
    values = w @ (gram_kept + erase * t.T @ e)
    return torch.linalg.solve(gram_kept + erase * e.T @ e, values, left=False)


def align(
    concept: Sequence[int], target: Sequence[int], special: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return, for each token of a concept prompt from its first own word on, where it maps to.

    Words that both prompts end with map to each other, so do the end of text and the padding;
    words that only the concept prompt has map to the last word before them.

    Args:
        concept: Token ids of the concept prompt, start and end of text and padding included.
        target: Those of the target prompt, equally long.
        special: Index of the end of text in each, (concept's, target's).

    Returns:
        [(position in concept, position in target)].
    """
    end_c, end_t = special
    body_c, body_t = concept[1:end_c], target[1:end_t]
    prefix = 0
    while prefix < min(len(body_c), len(body_t)) and body_c[prefix] == body_t[prefix]:
        prefix += 1
    suffix = 0
    room = min(len(body_c), len(body_t)) - prefix
    while suffix < room and body_c[-1 - suffix] == body_t[-1 - suffix]:
        suffix += 1
    mapped = []
    own = len(body_c) - suffix - prefix
    replaced = len(body_t) - suffix - prefix
    for k in range(own):
        # A concept word that has a counterpart ("gun" -> "thing") maps to that.
        position = prefix + min(k, replaced - 1) if replaced else prefix - 1
        mapped.append((1 + prefix + k, 1 + position))
    for k in range(suffix):
        mapped.append((end_c - suffix + k, end_t - suffix + k))
    last = len(target) - 1
    for k in range(len(concept) - end_c):
        mapped.append((end_c + k, min(end_t + k, last)))
    return mapped


def token_states(
    parts: DiffusionParts, texts: EraseTexts, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (E, T, P), the text states that the closed form needs, (K, D) each.

    Args:
        parts: The base model.
        texts: Prompts with the concept, without it, and to preserve.
        variant: As in `UceSettings`.
    """
    concept, target = _read(parts, texts.concepts), _read(parts, texts.targets)
    e_rows, t_rows = [], []
    for row, ids in enumerate(concept.ids):
        ends = (concept.ends[row], target.ends[row])
        if variant == "last-token":
            places = [(ends[0] - 1, ends[1] - 1)]
        elif variant == "paper":
            length = len(ids) - max(ends) + 1
            places = [(ends[0] - 1 + k, ends[1] - 1 + k) for k in range(length)]
        else:
            places = align(ids, target.ids[row], ends)
        e_rows += [concept.states[row, c] for c, _ in places]
        t_rows += [target.states[row, t] for _, t in places]
    return torch.stack(e_rows), torch.stack(t_rows), _preserved(parts, texts, variant)


def _preserved(parts: DiffusionParts, texts: EraseTexts, variant: str) -> torch.Tensor:
    """Return P, the states to preserve, (K, D)."""
    prompts = tuple(dict.fromkeys(("", *texts.preserve))) if variant == "paper" else texts.preserve
    if not prompts:
        return torch.zeros(0, parts.width, dtype=torch.float64)
    read = _read(parts, prompts)
    if variant == "last-token":
        return torch.stack([s[e - 1] for s, e in zip(read.states, read.ends, strict=True)])
    return read.states.reshape(-1, read.states.shape[-1])


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Encoded prompts: token ids, where each text ends, and float64 states, (P, L, D)."""

    ids: list[list[int]]
    ends: list[int]
    states: torch.Tensor


def _read(parts: DiffusionParts, prompts: Sequence[str]) -> _Read:
    tokenizer = parts.tokenizers[0]
    ids = tokenize(tokenizer, list(prompts)).ids
    rows = [encode(parts, list(prompts[i : i + 64])).states for i in range(0, len(prompts), 64)]
    return _Read(
        ids=ids.tolist(),
        ends=(ids == tokenizer.eos_token_id).int().argmax(1).tolist(),
        states=torch.cat([states.cpu().double() for states in rows]),
    )


@torch.no_grad()
def uce(
    parts: DiffusionParts, texts: EraseTexts, settings: UceSettings | None = None
) -> dict[str, torch.Tensor]:
    """Return the edited tensors {name in the U-Net: (O, D) float32}; the model is not changed.

    Args:
        parts: The base model.
        texts: Prompts with the concept, without it, and to preserve.
        settings: By default those of the `sequence` variant.
    """
    settings = (settings or UceSettings()).resolved(len(texts.preserve))
    concept, target, preserve = token_states(parts, texts, settings.variant)
    state = parts.unet.state_dict()
    names = [n for n in state if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return {
        name: edited(state[name].cpu(), concept, target, preserve, settings).float()
        for name in names
    }
