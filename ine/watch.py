"""Watch a denoising loop for numbers that are not finite.

Shape letter: B pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from ine.finite import NotFinite, finite_rows

NEVER = 2**31 - 1
"""Stands for the step of an event that did not happen."""

LOOK_EVERY = 10
"""Steps between two checks on an accelerator, which each check waits for."""


class Query(Protocol):
    """A prediction that a guidance asks for, see `ine.guidance.protocol`."""

    @property
    def name(self) -> str:
        """Its key among a step's predictions."""

    @property
    def pictures(self) -> Sequence[int] | None:
        """The pictures that it is about; None means all."""


class Watch:
    """Watches one run of a denoising loop for numbers that are not finite.

    A context manager: at its end, also after an exception, it raises `NotFinite` if it found
    something, since a gate's or a solver's result from NaN is as useless as NaN.
    """

    def __init__(
        self, count: int, steps: int, device: str | torch.device, dtype: torch.dtype
    ) -> None:
        """Watch `count` pictures over `steps` steps."""
        self.steps, self.dtype = steps, dtype
        self.always = torch.device(device).type == "cpu"
        # The first step that is not finite, per picture: of the U-Net, of the latents.
        self.first = torch.full((2, count), NEVER, device=device)

    def __enter__(self) -> "Watch":
        """Return the watch itself."""
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        """Check once more, unless the run was left on purpose or has raised `NotFinite`."""
        if error is None or (isinstance(error, Exception) and not isinstance(error, NotFinite)):
            self.look()

    def answered(
        self, index: int, queries: Iterable[Query], out: Mapping[str, torch.Tensor]
    ) -> None:
        """Note the step at which predictions, {query name: prediction}, are not finite."""
        for query in queries:
            self.saw(index, out[query.name], query.pictures)

    def saw(self, index: int, values: torch.Tensor, pictures: Sequence[int] | None = None) -> None:
        """Note the step at which the prediction for some pictures is not finite; None means all."""
        self._keep(0, index, slice(None) if pictures is None else list(pictures), values)

    def stepped(self, index: int, latents: torch.Tensor, look: bool = True) -> None:
        """Note the step at which latents are not finite; with `look`, check every few steps."""
        self._keep(1, index, slice(None), latents)
        if look and (self.always or index % LOOK_EVERY == 0):
            self.look()

    def _keep(self, kind: int, index: int, rows: slice | list[int], values: torch.Tensor) -> None:
        bad = torch.where(finite_rows(values), NEVER, index)
        self.first[kind, rows] = torch.minimum(self.first[kind, rows], bad)

    def look(self) -> None:
        """Raise `NotFinite` if something was found; waits for the device."""
        bad = self.bad()
        if bad:
            unet, _ = self.first.tolist()
            what = "U-Net" if min(unet) < NEVER else "guidance"
            share = f"{len(bad)} of {len(unet)} pictures"
            raise NotFinite(what, self.dtype, min(bad.values()), self.steps, share)

    def bad(self) -> dict[int, int]:
        """Return {picture: first step, from 0} of pictures that are not finite."""
        first = self.first.amin(0).tolist()
        return {picture: step for picture, step in enumerate(first) if step < NEVER}
