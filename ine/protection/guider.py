"""The same defence as a guider for diffusers' modular pipelines (experimental there).

    eps* = u + w (c - u) - s (n - eps_0)

with c, u, n, eps_0 the predictions for the prompt, the pipeline's own negative, our negative
and no negative at all. Where the user gives no negative, u = eps_0 is asked about once. With
s = w - 1, the default, this is plain guidance with our negative, n + w (c - n), and a negative
of the user's own stays beside it. With `shift` it is contextual guidance, with
s (eps_moved - c) / a in the place of s (n - eps_0); see `ine.guidance.contextual`.

A guider returns one batch per prediction and the pipeline's loop runs the U-Net on each, so a
gate that decides within a step has no place here, except for a look-ahead, which decides at the
first (`ine.protection.guider_look`). Pictures in which it finds nothing are those of plain
guidance, bit by bit; where that is all of them, the negative is predicted at the first step only.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import register_to_config

from ine.errors import EmbeddingError, IneError
from ine.finite import NotFinite, check_finite
from ine.guidance.cfg import classifier_free
from ine.protection.guider_look import (
    GuiderLook,
    GuiderOutput,
    LookingGuidance,
    rescale_noise_cfg,
)
from ine.protection.guider_settings import check_settings
from ine.protection.handle import OVERFLOWED
from ine.text.condition import Condition

if TYPE_CHECKING:
    from diffusers.modular_pipelines.modular_pipeline import BlockState

log = logging.getLogger("ine")

STATES = ("prompt_embeds", "encoder_hidden_states")
POOLED = ("text_embeds", "pooled_prompt_embeds")
"""What modular blocks call the text states and the pooled states."""


class EmbeddingGuider(LookingGuidance):
    """Classifier-free guidance with a negative of ours beside the user's.

    Args:
        negative: Our negative's `Condition`, one row.
        empty: The `Condition` of no negative, one row.
        look: A look-ahead that decides which pictures are steered; None steers all.
        direction: What sets our negative apart from the empty text, one row; for `shift`.
        guidance_scale: w.
        strength: s, 0 or more; None is w - 1, plain guidance with the embedding.
        shift: a of contextual guidance, in (0, 1]; None is additive guidance.
        guidance_rescale: As `ClassifierFreeGuidance`'s, in [0, 1].
        start: Fraction of the run at which guidance, and the defence with it, begins.
        stop: Fraction of the run at which it ends; outside only c is predicted.
        enabled: False predicts c alone, undefended.
        on_overflow: What to do where a prediction holds NaN or infinity, as float16 does beyond
            65504, and the picture would be black: "raise" `ine.finite.NotFinite`, or "warn".
            The pipeline decodes pictures itself, so that an overflow in the VAE is not seen here.
    """

    # In the order in which batches are run; the first is the conditional one.
    _input_predictions = ["pred_cond", "pred_uncond", "pred_negative", "pred_empty"]  # noqa: RUF012
    ignore_for_config = ["negative", "empty", "look", "direction"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        negative: Condition | None = None,
        empty: Condition | None = None,
        look: GuiderLook | None = None,
        direction: Condition | None = None,
        guidance_scale: float = 7.5,
        strength: float | None = None,
        shift: float | None = None,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        on_overflow: str = "raise",
    ) -> None:
        super().__init__(start, stop, enabled)
        if negative is None or empty is None:
            raise IneError("EmbeddingGuider: no embedding is given; build it by embedding_guider")
        check_settings(guidance_scale, strength, guidance_rescale, on_overflow, shift)
        if shift is not None and direction is None:
            raise IneError(
                "EmbeddingGuider: contextual guidance needs a direction; build it by "
                "embedding_guider(pipe, FILE, shift=0.25)"
            )
        self.negative, self.empty, self.direction = negative, empty, direction
        self.shift = shift
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self.strength = guidance_scale - 1 if strength is None else strength
        self.on_overflow = on_overflow
        self.look_with(look)
        self._beside = False
        self.check_source: Callable[[], None] | None = None

    def new(self, **kwargs: Any) -> "EmbeddingGuider":
        """Return a copy, some settings replaced; the conditions go along."""
        # Not through from_config: it drops what has no place in a JSON file.
        settings = {k: v for k, v in self.config.items() if not k.startswith("_")}
        kept = {name: getattr(self, name) for name in self.ignore_for_config}
        guider = type(self)(**{**kept, **settings, **kwargs})
        guider.check_source = self.check_source
        return guider

    @property
    def num_conditions(self) -> int:
        """Number of U-Net calls a step: 1 outside the window, else 3.

        2 where the look-ahead has found nothing; 4 with a user's negative and no `shift`.
        """
        if not self._acts():
            return 1
        if not self._steering:
            return 2
        return 4 if self._beside and self.shift is None else 3

    @property
    def is_conditional(self) -> bool:
        """Return whether the batch being run is the prompt's, moved or not."""
        return self._count_prepared == 1 or (self._count_prepared == 3 and self.shift is not None)

    def _acts(self) -> bool:
        if not self._enabled:
            return False
        if self._num_inference_steps is None:
            return True
        first, last = (int(f * self._num_inference_steps) for f in (self._start, self._stop))
        # Some schedulers (PNDM, Heun) call more often than they have steps; the surplus calls
        # must not slip through a window that has no end.
        return first <= self._step and (self._step < last or self._stop == 1)

    def prepare_inputs(self, data: Mapping[str, Any]) -> "list[BlockState]":
        """Return one batch per prediction.

        Args:
            data: {field: (conditional, unconditional)}, tensors of B rows; fields of one tensor
                are the same for all predictions.
        """
        field = next((name for name in STATES if data.get(name) is not None), None)
        if field is None or not isinstance(data[field], tuple):
            raise IneError(
                f"EmbeddingGuider: this pipeline passes {', '.join(data)}, expected "
                f"(conditional, unconditional) text states as {' or '.join(STATES)}"
            )
        states = data[field]
        if self.check_source is not None:
            self.check_source()
        if not self._acts():
            return [self._prepare_batch(data, 0, "pred_cond")]
        if states[1] is None:
            raise IneError("EmbeddingGuider: the pipeline made no unconditional text states")
        if self.negative.states.shape[-1] != states[0].shape[-1]:
            raise EmbeddingError(
                f"EmbeddingGuider: made for text states of width {self.negative.states.shape[-1]}"
                f", this pipeline has {states[0].shape[-1]}; build it from this pipeline"
            )
        self._beside = not self._says_nothing(states[1])
        pooled = next((data[n] for n in POOLED if data.get(n) is not None), (None, None))
        positive, user = (
            Condition(states=s, pooled=p) for s, p in zip(states, pooled, strict=True)
        )
        self.expect(positive, self.empty, user if self._beside else None, self.guidance_scale)
        batches = [
            self._prepare_batch(data, 0, "pred_cond"),
            self._prepare_batch(data, 1, "pred_uncond"),
        ]
        if not self._steering:
            return batches
        if self.shift is not None and self.direction is not None:
            moved = positive.moved(self.direction.times(self.shift))
            batches.append(self._with(data, field, moved, "pred_negative", 0))
            return batches
        batches.append(self._with(data, field, self.negative, "pred_negative"))
        if self._beside:
            batches.append(self._with(data, field, self.empty, "pred_empty"))
        return batches

    def prepare_inputs_from_block_state(
        self, data: "BlockState", input_fields: Mapping[str, str | Sequence[str | None]]
    ) -> "list[BlockState]":
        """Return one batch per prediction; `input_fields` names the attributes of `data`."""

        def look_up(names: str | Sequence[str | None]) -> Any:
            if isinstance(names, str):
                return getattr(data, names, None)
            return tuple(None if n is None else getattr(data, n, None) for n in names)

        return self.prepare_inputs({k: look_up(v) for k, v in input_fields.items()})

    def _says_nothing(self, states: torch.Tensor) -> bool:
        """Return whether unconditional states are those of no negative."""
        empty = self.empty.states.to(states.device, states.dtype)
        if empty.shape[1:] != states.shape[1:]:
            return False
        return bool((states - empty).float().norm() <= 1e-2 * states.float().norm())

    def _with(
        self, data: Mapping[str, Any], field: str, condition: Condition, name: str, half: int = 1
    ) -> "BlockState":
        """Return the unconditional (1) or conditional (0) batch, with our condition as its text."""
        batch = self._prepare_batch(data, half, name)
        for keys, ours in (((field,), condition.states), (POOLED, condition.pooled)):
            for key in keys:
                if (theirs := getattr(batch, key, None)) is not None and ours is not None:
                    rows = ours.to(theirs.device, theirs.dtype)
                    setattr(batch, key, rows.expand(len(theirs), *rows.shape[1:]))
        return batch

    def forward(
        self,
        pred_cond: torch.Tensor,
        pred_uncond: torch.Tensor | None = None,
        pred_negative: torch.Tensor | None = None,
        pred_empty: torch.Tensor | None = None,
    ) -> GuiderOutput:
        """Return the guided prediction; all (B, C, H, W)."""
        if pred_uncond is None:
            pred = pred_cond
        else:
            empty = pred_uncond if pred_empty is None else pred_empty
            pred = classifier_free(pred_uncond, pred_cond, self.guidance_scale)
            if pred_negative is not None and self.shift is not None:
                away = (pred_negative - pred_cond) / self.shift
                pred = self.corrected(pred, self.strength * away)
            elif pred_negative is not None:
                pred = self.corrected(pred, self.strength * (pred_negative - empty))
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        self._check_finite(pred)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _check_finite(self, pred: torch.Tensor) -> None:
        """Raise or log `NotFinite`, as the user chose, where a prediction is not finite."""
        try:
            check_finite(pred, "U-Net", self._step or 0, self._num_inference_steps)
        except NotFinite as error:
            if self.on_overflow == "raise":
                raise error.advised(OVERFLOWED) from None
            log.warning("%s; no picture could be made", error.summary())
