"""What the U-Net is conditioned on: text states and what goes with them.

Shape letters: B prompts, L tokens of the context (77; mini 32), D text width, P width of pooled
states, G width of an embedded guidance scale, C' channels beside the latents, H W latent size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn.functional import pad

from ine.errors import IneError


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the U-Net is conditioned on, for a batch of prompts."""

    states: torch.Tensor
    """Last hidden states, encoders side by side in D, (B, L, D)."""

    pooled: torch.Tensor | None = None
    """Pooled states of the last encoder (SDXL), (B, P)."""

    time_ids: torch.Tensor | None = None
    """Size and crop numbers (SDXL), (B, 6)."""

    timestep_cond: torch.Tensor | None = None
    """Embedding of the guidance scale (LCM), (B, G)."""

    inpainting_input: torch.Tensor | None = None
    """What stands beside the latents (inpainting), (B, C', H, W)."""

    def rows(self, index: list[int] | slice | torch.Tensor) -> "Condition":
        """Return the condition of some prompts; `index` is a list, mask or slice."""
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        """Return the condition with every tensor changed."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{n: None if x is None else change(x) for n, x in given.items()})

    def repeat(self, count: int) -> "Condition":
        """Return the condition of one prompt for `count` pictures; of `count` prompts, itself."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise ValueError(f"a condition of {len(self)} rows cannot be asked of {count} pictures")
        return self.rows([0] * count)

    def times(self, factor: float) -> "Condition":
        """Return an offset of another size: text and pooled states multiplied."""
        pooled = None if self.pooled is None else factor * self.pooled
        return replace(self, states=factor * self.states, pooled=pooled)

    def moved(self, offset: "Condition") -> "Condition":
        """Return the condition with an offset added to its text.

        Args:
            offset: States (1, L', D) with L' <= L, added to the first L' tokens; pooled states
                (1, P), or None to leave these as they are.

        Raises:
            IneError: The offset has more tokens.
        """
        missing = self.states.shape[1] - offset.states.shape[1]
        if missing < 0:
            raise IneError(
                f"the prompts have {self.states.shape[1]} tokens of text states and what is to be "
                f"added has {offset.states.shape[1]}; encode prompts to the encoder's full length"
            )
        states = self.states + pad(offset.states, (0, 0, 0, missing)).to(self.states)
        if self.pooled is None or offset.pooled is None:
            return replace(self, states=states)
        return replace(self, states=states, pooled=self.pooled + offset.pooled.to(self.pooled))

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.states)


def join_conditions(conditions: Sequence[Condition]) -> Condition:
    """Stack conditions along the batch, in order."""
    rows = {f.name: [getattr(c, f.name) for c in conditions] for f in fields(Condition)}
    return Condition(**{n: None if xs[0] is None else torch.cat(xs) for n, xs in rows.items()})


def silenced(condition: Condition) -> Condition:
    """Return a condition whose text is zeros, which is what SDXL was trained on for no text."""
    blank = {"states": torch.zeros_like(condition.states)}
    if condition.pooled is not None:
        blank["pooled"] = torch.zeros_like(condition.pooled)
    return replace(condition, **blank)
