"""What an inversion keeps beside its vectors: losses, previews, the best vectors; its state file.

Shape letters: N vectors, D text width.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ine.optim import StateFile
from ine.recipe import InversionSettings
from ine.store.tensors import Notes, Tensors


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the vectors do at one step; shares in [0, 1]."""

    step: int
    recovery: float | None
    """Share of pictures with the concept when the vectors are the prompt; None if not drawn."""

    left: float | None
    """Share with the concept on the tuning prompts when the vectors are the negative."""

    undefended: float | None
    """The same without any negative."""

    preservation: float | None = None
    """How alike pictures of benign tuning prompts stay with the vectors as the negative: cosine of
    the detector's features, unrelated pictures at 0 and unchanged ones at 1."""

    def reaches(self, target: float) -> bool:
        """Return whether it preserves at least `target`, or was not asked."""
        return self.preservation is None or self.preservation >= target

    def order(self, target: float = 0.0) -> tuple[float, ...]:
        """Return the sort key; what to keep comes first.

        Of those that reach the target preservation what leaves least; preservation, then recovery
        break ties. If none reaches it, what preserves most.
        """
        kept, recovery = self.preservation or 0.0, self.recovery or 0.0
        if not self.reaches(target):
            return (1.0, -kept, self.left or 0.0, -recovery)
        return (0.0, self.left or 0.0, -kept, -recovery)


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """The result of a run."""

    vectors: tuple[torch.Tensor, ...]
    """One (N, D) float32 tensor per text encoder."""

    kept: Preview | None
    """The preview whose vectors were kept; None if there was none."""

    previews: tuple[Preview, ...]
    loss: float
    """Mean loss of the last hundred steps."""

    steps: int
    """Optimiser steps that were taken."""

    run: int = 1
    """Which of several inversions it is, from 1."""

    runs: tuple["Inversion", ...] = ()
    """All of them, in order, this one too; none where there was only this."""

    @property
    def all_steps(self) -> int:
        """Optimiser steps that were taken in all runs."""
        return sum(one.steps for one in self.runs) if self.runs else self.steps


MakePreview = Callable[[list[torch.Tensor], int], Preview]
"""`(vectors, finished steps) -> Preview`."""


class History:
    """Losses, previews and the best vectors of a run: what its state holds beside the vectors."""

    def __init__(
        self,
        vectors: list[torch.Tensor],
        spec: InversionSettings,
        preview: MakePreview | None = None,
    ) -> None:
        """Begin without losses and previews; `vectors` are those that the optimiser changes."""
        self.vectors, self.spec, self.preview = vectors, spec, preview
        self.steps = 0
        self.losses: list[float] = []
        self.averages = [torch.zeros_like(v, requires_grad=False) for v in vectors]
        self.previews: list[Preview] = []
        self.best: Preview | None = None
        self.best_vectors: list[torch.Tensor] = []

    def record(self, step: int, loss: float) -> None:
        """Keep the loss, and make a preview where one is due."""
        self.steps, self.losses = step, [*self.losses[-99:], loss]
        if self.spec.average:
            for average, vector in zip(self.averages, self.vectors, strict=True):
                average.lerp_(vector.detach(), 1 - self.spec.average)
        due = step % self.spec.preview_every == 0 or step == self.spec.steps
        if self.preview and due:
            now, target = self.current(), self.spec.target_preservation
            seen = self.preview(now, step)
            self.previews.append(seen)
            if self.best is None or seen.order(target) < self.best.order(target):
                self.best, self.best_vectors = seen, [v.clone() for v in now]

    def current(self) -> list[torch.Tensor]:
        """Return the vectors after the last step, or their running mean if the recipe wants it.

        The mean over steps 1 to t of the vectors v_k, weighted by d^(t-k) for the decay d:

            (1 - d) sum_k d^(t-k) v_k / (1 - d^t).

        Source: Kingma and Ba 2015, section 3, whose correction leaves no trace of the zero start.
        """
        if not self.spec.average or not self.steps:
            return [v.detach() for v in self.vectors]
        return [a / (1 - self.spec.average**self.steps) for a in self.averages]

    def enough(self) -> bool:
        """Return whether as many previews as the recipe's patience won nothing."""
        best, patience = self.best, self.spec.patience
        if best is None or not patience:
            return False
        return sum(seen.step > best.step for seen in self.previews) >= patience

    def pack(self) -> tuple[Tensors, Notes]:
        """Return the history for a state file, a few kilobytes."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        tensors |= {f"best.{number}": vector for number, vector in enumerate(self.best_vectors)}
        if self.spec.average:
            tensors |= {f"average.{number}": mean for number, mean in enumerate(self.averages)}
        previews = [asdict(p) for p in self.previews]
        return tensors, {"previews": previews, "best": asdict(self.best) if self.best else None}

    def unpack(self, tensors: Tensors, notes: Notes) -> None:
        """Take over the history from a state file."""
        self.steps, self.losses = notes["step"], tensors["losses"].tolist()
        if self.spec.average:
            self.averages = [tensors[f"average.{n}"] for n in range(len(self.vectors))]
        self.previews = [Preview(**p) for p in notes["previews"]]
        if notes["best"]:
            self.best = Preview(**notes["best"])
            self.best_vectors = [tensors[f"best.{n}"] for n in range(len(self.vectors))]

    def result(self) -> Inversion:
        """Return the best vectors, or the last ones where there was no preview."""
        chosen = self.best_vectors if self.best else self.current()
        return Inversion(
            vectors=tuple(v.clone() for v in chosen),
            kept=self.best,
            previews=tuple(self.previews),
            loss=sum(self.losses) / max(1, len(self.losses)),
            steps=self.steps,
        )


def state_file(path: Path | None, key: str, every: int = 50, averaged: bool = False) -> StateFile:
    """Return where an inversion keeps its state, `averaged` with a running mean of the vectors."""
    return StateFile(
        path=path,
        key=key,
        command="ine invert",
        every=every,
        prefix="vectors.",
        check=partial(_check_state, averaged=averaged),
    )


def read_state(path: Path, key: str) -> tuple[Notes, Tensors] | None:
    """Return (notes, tensors) of a state file, or None if there is no file.

    Raises:
        IneError: The file is damaged or belongs to another run.
    """
    found = state_file(path, key).read()
    return found and (found[2], found[1])


def _check_state(tensors: Tensors, notes: Notes, *, averaged: bool) -> None:
    """Raise `ValueError`, `LookupError` or `TypeError` where no run can go on from a state."""
    best = notes["best"]
    _check_previews([*notes["previews"], *([best] if best else [])])
    losses = tensors["losses"]
    if losses.dim() != 1 or losses.dtype != torch.float64:
        raise ValueError("the losses are not float64")
    count = sum(name.startswith("vectors.") for name in tensors)
    if not count:
        raise ValueError("there are no vectors")
    kinds = ["vectors", "first", "second", *(["best"] if best else [])]
    kinds += ["average"] if averaged else []
    for number in range(count):
        shape = tensors[f"vectors.{number}"].shape
        for kind in kinds:
            found = tensors[f"{kind}.{number}"]
            fine = found.shape == shape and found.dim() == 2 and found.dtype == torch.float32
            if not fine or not torch.isfinite(found).all():
                raise ValueError(f"{kind}.{number} has another shape or is not finite")


def _check_previews(previews: list[dict[str, Any]]) -> None:
    """Raise where previews hold other fields or anything but numbers."""
    names = {field.name for field in fields(Preview)}
    for seen in previews:
        if set(seen) != names or (seen["recovery"] is None and seen["left"] is None):
            raise ValueError("a preview has other fields")
        numbers = [n for n in seen.values() if n is not None]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError("a preview holds something other than numbers")
        if seen["step"] is None:
            raise ValueError("a preview without its step")
