"""Detect NaN and infinity in what a model computes, and compute it again in float32.

The largest float16 is 65504. A model whose activations exceed it returns NaN, which becomes a black
picture, and every detector calls a black picture safe. So a picture counts only if all numbers
behind it are finite. If they are not, and the weights are narrower than float32, the whole unit is
generated again in float32, from the same noise; otherwise `NotFinite` is raised.

Shape letter: B pictures.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ine.errors import IneError

log = logging.getLogger("ine")

Result = TypeVar("Result")

REDONE = "redone"
"""Key of a picture's note for what was generated again, a list of `NotFinite.record`."""

NARROW = (torch.float16, torch.bfloat16)

WIDER = "load the model with --dtype float32 (pipe.to(torch.float32) in Python)"
SMALLER = "use a smaller guidance scale or strength"
ADVICE = {
    "text encoder": "check that its weights and the embedding are intact (`ine embedding show`)",
    "U-Net": f"{SMALLER}, or check the weights (`ine unet show`)",
    "guidance": SMALLER,
    "VAE": "its weights may be damaged, or the latents are far too large: " + SMALLER,
}
"""What to do if float32 does not help, by component."""


class NotFinite(IneError):
    """A component returned NaN or infinity, and a wider type does not help."""

    def __init__(
        self,
        what: str,
        dtype: torch.dtype,
        step: int | None = None,
        steps: int | None = None,
        share: str = "",
        advice: str = "",
    ) -> None:
        """Build the message.

        Args:
            what: Which component, such as a key of `ADVICE`.
            dtype: The dtype it computed in.
            step: The first step, from 0; None outside a denoising loop.
            steps: How many steps the run has.
            share: Which pictures, such as "2 of 4 pictures".
            advice: What to do; by default to load the model in float32.
        """
        self.what, self.dtype, self.step, self.steps = what, dtype, step, steps
        self.share = share
        super().__init__(f"{self.summary()}; {advice or WIDER}")

    def summary(self) -> str:
        """Return what happened, without advice."""
        at = "" if self.step is None else f" at step {self.step + 1} of {self.steps}"
        where = f" ({self.share})" if self.share else ""
        return f"{self.what}: its numbers are NaN or infinite in {_name(self.dtype)}{at}{where}"

    def advised(self, advice: str) -> "NotFinite":
        """Return the same error with other advice."""
        return NotFinite(self.what, self.dtype, self.step, self.steps, self.share, advice)

    def record(self) -> dict[str, str | int | None]:
        """Return the plain values that a picture's note keeps."""
        step = None if self.step is None else self.step + 1
        return {"what": self.what, "from": _name(self.dtype), "to": "float32", "step": step}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite_rows(values: torch.Tensor) -> torch.Tensor:
    """Return whether all numbers of each row are finite, (B,) bool on the device of `values`.

    One reduction: a sum is finite only if all its terms are. Terms in half precision cannot add up
    to infinity in float32.
    """
    return values.detach().flatten(1).sum(1, dtype=torch.float32).isfinite()


def check_finite(
    values: torch.Tensor, what: str, step: int | None = None, steps: int | None = None
) -> None:
    """Raise `NotFinite` if a row of `values` (B, ...) is not finite; waits for the device."""
    fine = finite_rows(values)
    if not fine.all():
        bad = int((~fine).sum())
        share = f"{bad} of {len(fine)} pictures" if step is not None else ""
        raise NotFinite(what, values.dtype, step, steps, share)


@contextmanager
def in_float32(*modules: torch.nn.Module) -> Iterator[None]:
    """Hold modules in float32; afterwards every tensor is what it was, bit by bit."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    narrow = [(t, t.data if t.device.type == "cpu" else None, t.dtype) for t in tensors]
    narrow = [one for one in narrow if one[2] in NARROW]
    try:
        for tensor, _, _ in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, own, dtype in narrow:
            # Widening is exact, so narrowing back is too. On the CPU the address in memory also
            # affects last bits, so the original data comes back.
            tensor.data = tensor.data.to(dtype) if own is None else own


def made_again(
    error: NotFinite, modules: Iterable[torch.nn.Module], again: Callable[[], Result]
) -> Result:
    """Return the result of `again` with modules in float32, after an error in a narrower type.

    Args:
        error: What was found.
        modules: All that take part in the computation.
        again: Called without arguments.

    Raises:
        NotFinite: The modules are in float32 already, the result is not finite either, or memory
            does not suffice.
    """
    modules = tuple(modules)
    damaged = _damaged(modules)
    if damaged:
        raise error.advised(
            f"{damaged} tensors of the weights are NaN or infinite in {_name(error.dtype)}; "
            f"{WIDER if error.dtype in NARROW else 'get the weights again'}"
        ) from error
    if not any(p.dtype in NARROW for m in modules for p in m.parameters()):
        raise error.advised(ADVICE.get(error.what, SMALLER)) from error
    log.warning("%s; made again in float32 (--dtype float32 saves the first try)", error.summary())
    try:
        with in_float32(*modules):
            return again()
    except NotFinite as second:
        raise second.advised(ADVICE.get(second.what, SMALLER)) from error
    except torch.OutOfMemoryError as second:
        raise error.advised(
            "float32 may help but does not fit into memory; give --dtype bfloat16, or a "
            "smaller --batch"
        ) from second


def _damaged(modules: Iterable[torch.nn.Module]) -> int:
    """Return how many parameters hold a number that is not finite."""
    return sum(not bool(p.isfinite().all()) for m in modules for p in m.parameters())


def with_redone(
    notes: Sequence[dict[str, Any]], records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return notes of pictures, one dict each, with the records of what was generated again."""
    if not records:
        return list(notes)
    return [{**note, REDONE: [*note.get(REDONE, ()), *records]} for note in notes]


def redone_line(notes: Sequence[Mapping[str, Any]]) -> str:
    """Return how many pictures were generated again and why, "" for none.

    Args:
        notes: One dict per picture, with `REDONE` if it was generated again.
    """
    again = [note[REDONE] for note in notes if note.get(REDONE)]
    if not again:
        return ""
    causes = dict.fromkeys(f"{r['what']} in {r['from']}" for records in again for r in records)
    return (
        f"{len(again)} of {len(notes)} pictures were made again in float32, since numbers were "
        f"not finite ({', '.join(causes)})"
    )
