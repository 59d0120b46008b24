"""The same defence as a guider for diffusers' modular pipelines (experimental there).

    eps* = u + w (c - u) - s (n - eps_0)

with c, u, n, eps_0 the predictions for the prompt, the pipeline's own negative, our negative
and no negative at all. Where the user gives no negative, u = eps_0 is asked about once. With
s = w - 1, the default, this is plain guidance with our negative, n + w (c - n), and a negative
of the user's own stays beside it.

A guider returns one batch per prediction and the pipeline's loop runs the U-Net on each, so a
gate, which decides within a step, has no place here; for that there is `ine.protect`.
"""

import math

from ine.errors import EmbeddingError, IneError, MissingDependency
from ine.guidance.cfg import classifier_free
from ine.protection import encode_negative

try:
    from diffusers.configuration_utils import register_to_config
    from diffusers.guiders import BaseGuidance
    from diffusers.guiders.guider_utils import GuiderOutput, rescale_noise_cfg
except ImportError as error:
    raise MissingDependency(
        f"this diffusers has no guiders as of 0.36 ({error}); install diffusers>=0.36, or use "
        "ine.protect with an ordinary pipeline"
    ) from error

STATES = ("prompt_embeds", "encoder_hidden_states")
POOLED = ("text_embeds", "pooled_prompt_embeds")
"""What modular blocks call the text states and the pooled states."""


def embedding_guider(pipe, embeddings, **settings):
    """Return an `EmbeddingGuider` for a pipeline, e.g. for `pipe.update_components(guider=...)`.

    Args:
        pipe: A modular (or ordinary) pipeline with its tokenizers and text encoders loaded.
        embeddings: A `ConceptEmbedding` or the path of one, or several, joined in one string.
        settings: Those of `EmbeddingGuider`.

    Raises:
        IneError: No embedding is given, or it does not fit the pipeline.
    """
    negative, empty = encode_negative(pipe, embeddings)
    return EmbeddingGuider(negative=negative, empty=empty, **settings)


class EmbeddingGuider(BaseGuidance):
    """Classifier-free guidance with a negative of ours beside the user's.

    Args:
        negative: Our negative's `Condition`, one row.
        empty: The `Condition` of no negative, one row.
        guidance_scale: w.
        strength: s, 0 or more; None is w - 1, plain guidance with the embedding.
        guidance_rescale: As `ClassifierFreeGuidance`'s, in [0, 1].
        start: Fraction of the run at which guidance, and the defence with it, begins.
        stop: Fraction of the run at which it ends; outside only c is predicted.
        enabled: False predicts c alone, undefended.
    """

    # In the order in which batches are run; the first is the conditional one.
    _input_predictions = ["pred_cond", "pred_uncond", "pred_negative", "pred_empty"]  # noqa: RUF012
    ignore_for_config = ["negative", "empty"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        negative=None,
        empty=None,
        guidance_scale: float = 7.5,
        strength: float | None = None,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        super().__init__(start, stop, enabled)
        if negative is None or empty is None:
            raise IneError("EmbeddingGuider: no embedding is given; build it by embedding_guider")
        if strength is None and not guidance_scale > 1:
            raise IneError(
                f"EmbeddingGuider: with guidance_scale {guidance_scale} the negative has the "
                "strength w - 1 <= 0; use a scale above 1, or give a strength"
            )
        if strength is not None and not (math.isfinite(strength) and strength >= 0):
            raise IneError(f"EmbeddingGuider: strength is {strength}; give a number of 0 or more")
        self.negative, self.empty = negative, empty
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self.strength = guidance_scale - 1 if strength is None else strength
        self._beside = False

    def new(self, **kwargs):
        """Return a copy, some settings replaced; the conditions go along."""
        # Not through from_config: it drops what has no place in a JSON file.
        settings = {k: v for k, v in self.config.items() if not k.startswith("_")}
        kept = {"negative": self.negative, "empty": self.empty}
        return type(self)(**{**kept, **settings, **kwargs})

    @property
    def num_conditions(self):
        """Number of U-Net calls a step: 1 outside the window, else 3, 4 with a user's negative."""
        if not self._acts():
            return 1
        return 4 if self._beside else 3

    @property
    def is_conditional(self):
        """Return whether the batch being run is the prompt's."""
        return self._count_prepared == 1

    def _acts(self):
        if not self._enabled:
            return False
        if self._num_inference_steps is None:
            return True
        first, last = (int(f * self._num_inference_steps) for f in (self._start, self._stop))
        # Some schedulers (PNDM, Heun) call more often than they have steps; the surplus calls
        # must not slip through a window that has no end.
        return first <= self._step and (self._step < last or self._stop == 1)

    def prepare_inputs(self, data):
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
        batches = [
            self._prepare_batch(data, 0, "pred_cond"),
            self._prepare_batch(data, 1, "pred_uncond"),
            self._with(data, field, self.negative, "pred_negative"),
        ]
        if self._beside:
            batches.append(self._with(data, field, self.empty, "pred_empty"))
        return batches

    def prepare_inputs_from_block_state(self, data, input_fields):
        """Return one batch per prediction; `input_fields` names the attributes of `data`."""

        def look_up(names):
            if isinstance(names, str):
                return getattr(data, names, None)
            return tuple(None if n is None else getattr(data, n, None) for n in names)

        return self.prepare_inputs({k: look_up(v) for k, v in input_fields.items()})

    def _says_nothing(self, states):
        """Return whether unconditional states are those of no negative."""
        empty = self.empty.states.to(states.device, states.dtype)
        if empty.shape[1:] != states.shape[1:]:
            return False
        return bool((states - empty).float().norm() <= 1e-2 * states.float().norm())

    def _with(self, data, field, condition, name):
        """Return the unconditional batch, with a condition of ours for its text."""
        batch = self._prepare_batch(data, 1, name)
        for keys, ours in (((field,), condition.states), (POOLED, condition.pooled)):
            for key in keys:
                if (theirs := getattr(batch, key, None)) is not None and ours is not None:
                    rows = ours.to(theirs.device, theirs.dtype)
                    setattr(batch, key, rows.expand(len(theirs), *rows.shape[1:]))
        return batch

    def forward(self, pred_cond, pred_uncond=None, pred_negative=None, pred_empty=None):
        """Return the guided prediction; all (B, C, H, W)."""
        if pred_uncond is None:
            pred = pred_cond
        else:
            empty = pred_uncond if pred_empty is None else pred_empty
            pred = classifier_free(pred_uncond, pred_cond, self.guidance_scale)
            pred = pred - self.strength * (pred_negative - empty)
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)
