"""The look-ahead of a guider: made in the pipeline's first call of its U-Net.

A guider never sees latents, but it is given the U-Net before each of its calls. A hook on the
first one runs the coarse steps at the latents of that call, then lets it go on. Its two plain
predictions come after that, so the look costs two rows more than elsewhere.

Shape letters: B pictures of a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ine.errors import IneError, MissingDependency
from ine.guidance.look_ahead import LookAhead
from ine.guidance.protocol import Notes, Step, UNetQuery
from ine.guidance.step import point_of
from ine.models.parts import DiffusionParts
from ine.protection.call import ARGUMENTS, Call
from ine.protection.parts import signal_power
from ine.protection.prompts import PipelinePrompts, UnseenTexts
from ine.text.condition import Condition

try:
    from diffusers.guiders import BaseGuidance
    from diffusers.guiders.guider_utils import GuiderOutput, rescale_noise_cfg
except ImportError as error:
    raise MissingDependency(
        f"this diffusers has no guiders as of 0.36 ({error}); install diffusers>=0.36, or use "
        "ine.protect with an ordinary pipeline"
    ) from error

__all__ = ["GuiderLook", "GuiderOutput", "LookingGuidance", "rescale_noise_cfg"]


@dataclass(frozen=True, kw_only=True)
class GuiderLook:
    """A look-ahead, and the pipeline that it is for."""

    gate: LookAhead
    parts: DiffusionParts
    scheduler: Callable[[], Any]
    """Returns the pipeline's scheduler as it is now."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a guider knows when its U-Net is called first."""

    index: int
    """0-based step."""

    count: int
    """Steps of the run."""

    t: torch.Tensor
    scale: float
    """w."""

    positive: Condition
    """Of the prompts, B rows."""

    empty: Condition
    """Of no negative, one row."""

    user: Condition | None
    """Of the user's own negative, B rows; None without one."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a look found."""

    opened: tuple[int, ...]
    """Pictures to steer."""

    notes: tuple[Notes, ...]
    """One per picture."""


@torch.no_grad()
def look(
    own: GuiderLook, unet: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, Any], at: Moment
) -> Looked:
    """Return what the look-ahead finds from the latents of a call of the U-Net.

    Args:
        own: The guider's look-ahead.
        unet: The U-Net that is called.
        args: What it is called with.
        kwargs: Likewise, by name.
        at: What the guider knows.
    """
    given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
    given.pop("return_dict", None)
    call = Call(unet, given, halves=1)
    rows = list(range(call.count))

    def query_unet(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
        point = point_of(queries)
        return {q.name: call.run(rows, [q.condition.repeat(len(rows))], point) for q in queries}

    scheduler, latents = own.scheduler(), call.sample[:, : own.parts.unet.config.out_channels]
    prompts = PipelinePrompts(
        parts=replace(own.parts, unet=unet),
        texts=UnseenTexts(call.count),
        scale=at.scale,
        own_positive=at.positive,
        own_empty=at.empty.repeat(call.count),
        own_negative=at.user,
    )
    step = Step(
        index=at.index,
        count=at.count,
        t=torch.as_tensor(at.t),
        x_t=latents,
        alpha_bar=signal_power(scheduler, torch.as_tensor(at.t)).to(latents.device, torch.float32),
        prediction_type=scheduler.config.get("prediction_type", "epsilon"),
    )
    session = own.gate.begin(prompts)
    session.open(step, query_unet)
    opened = tuple(i for i, found in enumerate(session.found) if found)
    return Looked(opened=opened, notes=tuple(session.notes()))


class LookingGuidance(BaseGuidance):
    """A guidance whose correction acts on the pictures that a look-ahead opens; see `look_with`."""

    def look_with(self, look: GuiderLook | None) -> None:
        """Set the look-ahead; None steers every picture."""
        self.look = look
        self._looked: Looked | None = None
        self._moment: Moment | None = None
        self._hook: Any = None
        self._steering = True

    @property
    def notes(self) -> list[Notes]:
        """What the look-ahead logged in the last run, one dict per picture."""
        return [] if self._looked is None else list(self._looked.notes)

    def set_state(self, step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        """Note the step; the first of a run forgets what was found in the one before."""
        super().set_state(step, num_inference_steps, timestep)
        if self.look is None:
            return
        if step == 0:
            self._looked = None
        window = self.look.gate.window
        inside = window.first <= step / num_inference_steps < window.last
        # Before the look nobody knows, so the first step predicts the negative for all.
        self._steering = inside and (self._looked is None or bool(self._looked.opened))

    def expect(
        self, positive: Condition, empty: Condition, user: Condition | None, scale: float
    ) -> None:
        """Take what the look needs of a step: the conditions as in `Moment`, and w."""
        if self.look is not None and self._looked is None and self._timestep is not None:
            self._moment = Moment(
                index=self._step,
                count=self._num_inference_steps,
                t=self._timestep,
                scale=scale,
                positive=positive,
                empty=empty,
                user=user,
            )

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Look ahead within the first guided call of the U-Net."""
        super().prepare_models(denoiser)
        if self._moment is not None:
            self._hook = denoiser.register_forward_pre_hook(self._ahead, with_kwargs=True)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Take the hook off the U-Net."""
        super().cleanup_models(denoiser)
        self._unhook()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _ahead(self, unet: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self._unhook()  # the look calls the U-Net itself
        moment, self._moment = self._moment, None
        if self.look is not None and moment is not None:
            self._looked = look(self.look, unet, args, kwargs, moment)

    def corrected(self, plain: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
        """Return a prediction without a correction in the pictures that are steered.

        Raises:
            IneError: The pipeline never let it look.
        """
        if self.look is None:
            return plain - correction
        if self._looked is None:
            raise IneError(
                "EmbeddingGuider: the pipeline did not call prepare_models, in which its gate "
                "looks; use ine.protect with an ordinary pipeline"
            )
        opened = list(self._looked.opened)
        steered = plain.clone()
        steered[opened] = plain[opened] - correction[opened]
        return steered
