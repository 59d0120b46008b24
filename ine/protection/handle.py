"""The handle of a protected pipeline: it takes the U-Net's calls and gives them back."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from ine.errors import IneError
from ine.finite import NotFinite, check_finite
from ine.guidance.attempts import left_in
from ine.guidance.protocol import Gate, Guidance, Notes
from ine.guidance.restart import Restart
from ine.models.parts import DiffusionParts
from ine.protection.call import ARGUMENTS
from ine.protection.interception import (
    TAKEN_OFF,
    Interception,
    cache_of,
    check_components,
    check_loop,
    once,
)
from ine.protection.parts import KNOWN, check_scheduler, components_of
from ine.protection.run import Run

log = logging.getLogger("ine")

ON_OVERFLOW = ("raise", "warn")
"""What `protect` does where numbers are not finite."""

OVERFLOWED = (
    "move it to a wider type, pipe.to(torch.float32) or torch.bfloat16 (the VAE alone: "
    "pipe.vae.to(torch.float32)), or give protect(..., on_overflow='warn')"
)
"""What to do where the pipeline's numbers are not finite."""


class Protection:
    """A protected pipeline; `protect` makes it."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        parts: DiffusionParts,
        method: Guidance,
        gate: Gate | None,
        on_overflow: str = "raise",
        restart: Restart | None = None,
        withhold: bool = False,
    ):
        """Take the calls of the pipeline's U-Net, progress bar and image processor."""
        self._pipe, self._parts, self._method, self._gate = pipe, parts, method, gate
        self._raises, self._restart, self._withhold = on_overflow == "raise", restart, withhold
        self._kept = components_of(pipe)
        self._running: dict[str, Run] = {}
        self._removed = False
        self._notes: list[Notes] = []
        self._calls: list[int] = []
        self._taken = Interception(pipe.unet, self._answer)
        # Not by a hook on the VAE, which a compiled `vae.decode` does not see or stumbles over.
        self._finish = pipe.image_processor.postprocess
        pipe.image_processor.__dict__["postprocess"] = self._postprocess
        self._bar = pipe.__dict__.get("progress_bar")
        self._loop = pipe.progress_bar
        pipe.__dict__["progress_bar"] = self._stand

    @property
    def notes(self) -> list[Notes]:
        """What method and gate logged in the pipeline's last call, one dict per picture."""
        return self._notes

    @property
    def left(self) -> tuple[int, ...]:
        """Pictures of the last call in which the gate found the concept after the last restart."""
        return left_in(self._notes)

    @property
    def unet_calls(self) -> list[int]:
        """UNet evaluations of the last call, (condition, step) pairs, one number per picture."""
        return self._calls

    def __enter__(self) -> Self:
        """Return the handle itself; the protection holds already."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Give the pipeline back."""
        self.remove()

    def remove(self) -> None:
        """Give the pipeline back as it was; a second call does nothing."""
        if self._removed:
            return
        self._removed = True
        self._taken.release()
        if self._pipe.image_processor.__dict__.get("postprocess") == self._postprocess:
            del self._pipe.image_processor.__dict__["postprocess"]
        if self._pipe.__dict__.get("progress_bar") == self._stand:
            del self._pipe.__dict__["progress_bar"]
            if self._bar is not None:
                self._pipe.__dict__["progress_bar"] = self._bar

    def _stand(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Stand for `pipe.progress_bar`: all known pipelines denoise within it and it alone.

        So a run has a beginning and, exceptions included, an end, and state is new every call.
        """
        check_loop(sys._getframe(1), self._pipe, KNOWN)
        return self._bracket(*args, **kwargs)

    @contextmanager
    def _bracket(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        how = (self._method, self._gate, self._raises, self._restart, self._withhold)
        run = Run(self._pipe, self._parts, *how)
        # One operation, so that of two threads one is the first.
        first = self._running.setdefault("run", run)
        if first is not run:
            first.disturbed = True
            raise _disturbed()
        try:
            self._check_ready()
            run.cache = cache_of(self._pipe.unet)
            with self._loop(*args, **kwargs) as bar, run.stack:
                yield bar
            self._check_done(run)
            self._notes, self._calls = run.notes(), run.nfe
            self._report_left()
            self._report_overflow(run.check_finite)
        finally:
            del self._running["run"]

    def _check_ready(self) -> None:
        """Raise where the pipeline is no longer what was protected."""
        self._taken.follow(self._pipe.unet)
        self._taken.check(self._pipe.unet)
        check_components(self._pipe, self._kept)
        check_scheduler(self._pipe)

    def _check_done(self, run: Run) -> None:
        """Raise where some step of the run went past the protection."""
        self._taken.check(self._pipe.unet)
        check_scheduler(self._pipe)
        if run.disturbed:
            raise _disturbed()
        if not run.index and not getattr(self._pipe, "interrupt", False):
            raise IneError(TAKEN_OFF)

    @torch.compiler.disable
    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        """Stand for the U-Net's forward."""
        if self._removed:  # but kept alive by a wrapper that came later
            return self._taken.forward(*args, **kwargs)
        run = self._running.get("run")
        if run is None or run.thread != threading.get_ident():
            raise IneError(
                "the protected U-Net was called outside its pipeline's own loop; if another "
                "pipeline shares it, protect that one instead, or call .remove() first"
            )
        if run.disturbed:
            raise _disturbed()
        given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
        whole = given.pop("return_dict", True)
        try:
            output = run.predict(once(self._taken.forward, run.cache), given)
        except NotFinite as error:
            raise error.advised(OVERFLOWED) from None
        self._taken.answered()
        return UNet2DConditionOutput(sample=output) if whole else (output,)

    def _report_left(self) -> None:
        """Log the pictures in which the concept shows after the last restart."""
        if self.left:
            log.warning(
                "in %d of %d pictures the gate finds the concept after the last restart too; %s",
                *(len(self.left), len(self._notes)),
                "they are empty"
                if self._withhold
                else "Protection.left has their numbers, and protect(..., withhold=True) empties "
                "them",
            )

    def _report_overflow(self, check: Callable[..., None], *args: Any) -> None:
        """Call a check, and raise or log the `NotFinite` that it raises."""
        try:
            check(*args)
        except NotFinite as error:
            if self._raises:
                raise error.advised(OVERFLOWED) from None
            log.warning("%s; no picture could be made", error.summary())

    def _postprocess(self, image: Any, output_type: str = "pil", *args: Any, **kwargs: Any) -> Any:
        """Raise or warn where the VAE's pixels are not finite, which become black."""
        if torch.is_tensor(image) and output_type != "latent":
            self._report_overflow(check_finite, image, "VAE")
        return self._finish(image, output_type, *args, **kwargs)


def _disturbed() -> IneError:
    return IneError(
        "a second call of the protected pipeline began while one was running, from another "
        "thread or from a callback; diffusers keeps the state of a run in the pipeline and its "
        "scheduler, so both end here: make one call at a time, or load a pipeline for each thread"
    )
