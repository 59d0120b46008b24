"""UCE: unified concept editing, a closed form on the keys and values of cross-attention.

    W' = (lam W + s_e W T'E + s_p W P'P) (lam I + s_e E'E + s_p P'P)^-1

Gandikota et al. 2024, eq. 7 (transposes written '). Rows of E are text states of the concept,
the same rows of T the states they are to be read as, rows of P states to preserve. E and P are
averaged over their rows here, so the scales do not depend on how many prompts are given.

Shape letters: D text width, O output width of a projection, K tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ine.text import encode, tokenize


@dataclass(frozen=True, kw_only=True)
class UceSettings:
    """Strengths of the edit."""

    erase_scale: float = 0.2
    """Weight s_e of the concept's tokens, relative to the preserved ones. More erases more."""

    preserve_scale: float = 1.0
    """Weight s_p of the preserved tokens."""

    ridge: float = 0.01
    """Weight lam of staying where the weights are; also keeps the system regular."""

    variant: Literal["sequence", "last-token"] = "sequence"
    """ "sequence" edits every token from the concept's first word on; "last-token" only the
    last one before the end of text, as the published code does. Information about a concept
    sits in all later tokens, so the latter leaves much of it and harms what is preserved."""


def edited(weight, concept, target, preserve, settings):
    """Return W' for one projection, (O, D) float64.

    Args:
        weight: W, (O, D).
        concept: E, (K, D).
        target: T, (K, D).
        preserve: P, (K', D); may be empty.
        settings: `UceSettings`.
    """
    w, e, t, p = (x.double() for x in (weight, concept, target, preserve))
    erase = settings.erase_scale / max(1, len(e))
    keep = settings.preserve_scale / max(1, len(p))
    eye = torch.eye(w.shape[1], dtype=torch.float64, device=w.device)
    gram_kept = keep * p.T @ p + settings.ridge * eye
    values = w @ (gram_kept + erase * t.T @ e)
    return torch.linalg.solve(gram_kept + erase * e.T @ e, values, left=False)


def align(concept, target, special):
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


def token_states(parts, texts, variant):
    """Return (E, T, P), the text states that the closed form needs, (K, D) each."""
    tokenizer = parts.tokenizers[0]

    def read(prompts):
        ids = tokenize(tokenizer, prompts).ids
        states = torch.cat(
            [
                encode(parts, prompts[i : i + 64]).states.cpu().double()
                for i in range(0, len(prompts), 64)
            ]
        )
        ends = (ids == tokenizer.eos_token_id).int().argmax(1).tolist()
        return ids.tolist(), ends, states

    concept_ids, concept_ends, concept_states = read(list(texts.concepts))
    target_ids, target_ends, target_states = read(list(texts.targets))
    e_rows, t_rows = [], []
    for row in range(len(concept_ids)):
        ends = (concept_ends[row], target_ends[row])
        if variant == "last-token":
            places = [(ends[0] - 1, ends[1] - 1)]
        else:
            places = align(concept_ids[row], target_ids[row], ends)
        e_rows += [concept_states[row, c] for c, _ in places]
        t_rows += [target_states[row, t] for _, t in places]
    width = concept_states.shape[-1]
    if texts.preserve:
        _, ends, states = read(list(texts.preserve))
        if variant == "last-token":
            kept = torch.stack([s[e - 1] for s, e in zip(states, ends, strict=True)])
        else:
            kept = states.reshape(-1, width)
    else:
        kept = torch.zeros(0, width, dtype=torch.float64)
    return torch.stack(e_rows), torch.stack(t_rows), kept


@torch.no_grad()
def uce(parts, texts, settings=None):
    """Return the edited tensors {name in the U-Net: (O, D) float32}; the model is not changed.

    Args:
        parts: The base model.
        texts: `EraseTexts`.
        settings: `UceSettings`.
    """
    settings = settings or UceSettings()
    concept, target, preserve = token_states(parts, texts, settings.variant)
    state = parts.unet.state_dict()
    names = [n for n in state if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return {
        name: edited(state[name].cpu(), concept, target, preserve, settings).float()
        for name in names
    }
