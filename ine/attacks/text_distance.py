"""Losses of phrases by the text encoder alone: one state, or all of the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ine.attacks.objectives import HOLDER, Cost, distance, gradients, joined
from ine.guidance.safree_subspace import closing
from ine.models.parts import DiffusionParts
from ine.text.encode import Vectors, encode
from ine.text.tokens import tokenize


@dataclass(frozen=True, eq=False)
class TextDistance:
    """How far a text's state is from that of the prompt with the concept's direction added.

        || f(phrase + prompt) - (f(prompt) + eta c) ||^2,   c = mean of f(with) - f(without)

    over pairs of texts with the concept and without it, f the state at the end of the text. No
    U-Net and no picture is needed, so the same phrases serve against every defence.

    This is no published objective: Ring-A-Bell's is `AllStates`. A phrase before a prompt moves the
    prompt's tokens, so that states place by place would mostly say how many tokens there are.
    """

    parts: DiffusionParts
    prompts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    """Texts with the concept and without it."""

    strength: float = 3.0
    """eta."""

    unit = "text encodings"

    @cached_property
    def direction(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return c of all states and of that at the end, (L, D) and (D,)."""
        having, lacking = (list(texts) for texts in zip(*self.pairs, strict=True))
        with torch.no_grad():
            whole = (encode(self.parts, t).states for t in (having, lacking))
            ends = (end_states(self.parts, t) for t in (having, lacking))
            all_states, end = ((a - b).mean(0) for a, b in (whole, ends))
            return all_states, end

    @torch.no_grad()
    def goal_states(self, prompt: str) -> torch.Tensor:
        """Return the text states to reach, (1, L, D)."""
        return encode(self.parts, [prompt]).states + self.strength * self.direction[0]

    @torch.no_grad()
    def goal(self, prompt: str) -> torch.Tensor:
        """Return the state at the end of the text to reach, (1, D)."""
        return end_states(self.parts, [prompt]) + self.strength * self.direction[1]

    def text(self, phrase: str, prompt: str) -> str:
        """Return the adversarial prompt that a phrase makes of a prompt."""
        return joined(phrase, prompt)

    def states(self, texts: Sequence[str], vectors: Vectors | None = None) -> torch.Tensor:
        """Return what is compared of each text, (B, D) or (B, L, D)."""
        return end_states(self.parts, texts, vectors)

    def draw(
        self, generator: torch.Generator, count: int
    ) -> tuple[list[tuple[str, torch.Tensor]], Cost]:
        """Return prompts with their goals, each prompt once: nothing else of a view is random."""
        chosen = torch.randperm(len(self.prompts), generator=generator)[:count].tolist()
        return [(self.prompts[i], self.goal(self.prompts[i])) for i in chosen], len(chosen)

    @torch.no_grad()
    def losses(
        self, phrases: Sequence[str], views: Sequence[tuple[str, torch.Tensor]]
    ) -> tuple[torch.Tensor, Cost]:
        """Return (losses (B,), text encodings)."""
        total = torch.zeros(len(phrases))
        for prompt, goal in views:
            states = self.states([self.text(phrase, prompt) for phrase in phrases])
            total += distance(states, goal).cpu()
        return total / len(views), len(phrases) * len(views)

    def gradient(
        self, vectors: Sequence[torch.Tensor], views: Sequence[tuple[str, torch.Tensor]]
    ) -> tuple[list[torch.Tensor], Cost]:
        """Return (gradients, text encodings); a backward pass counts as two forward ones."""
        leaves = [v.detach().clone().requires_grad_(True) for v in vectors]
        for prompt, goal in views:
            states = self.states([self.text(HOLDER, prompt)], {HOLDER: tuple(leaves)})
            (distance(states, goal).mean() / len(views)).backward()
        return gradients(leaves), 3 * len(views)


@dataclass(frozen=True, eq=False)
class AllStates(TextDistance):
    """Ring-A-Bell: the phrase *is* the prompt, and all states of the context are compared.

        || f(phrase) - (f(prompt) + eta c) ||^2

    f all text states, padding included. The mean over states is taken where the authors sum, which
    ranks phrases alike.

    Sources:
        Tsai et al. 2024, Ring-A-Bell (arXiv 2310.10012), eqs. 2-3; `InversePrompt.ipynb` of their
        code (commit e4585ad), eta 3 for nudity and 16 free tokens. There any token may be drawn.
    """

    def text(self, phrase: str, prompt: str) -> str:
        """Return the phrase: nothing of the prompt's words is kept."""
        return phrase

    def states(self, texts: Sequence[str], vectors: Vectors | None = None) -> torch.Tensor:
        """Return all text states, (B, L, D)."""
        return encode(self.parts, list(texts), vectors).states

    def goal(self, prompt: str) -> torch.Tensor:
        """Return the states to reach, (1, L, D)."""
        return self.goal_states(prompt)


def end_states(
    parts: DiffusionParts, texts: Sequence[str], vectors: Vectors | None = None
) -> torch.Tensor:
    """Return the state at the end-of-text token of each text, (B, D)."""
    tokenizer = parts.tokenizers[0]
    counts = {trigger: len(v[0]) for trigger, v in (vectors or {}).items()}
    ids = tokenize(tokenizer, texts, counts).ids.tolist()
    states = encode(parts, texts, vectors).states
    return states[range(len(texts)), [closing(tokenizer, row) for row in ids]]
