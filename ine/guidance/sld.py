"""Safe latent diffusion: elementwise steering away from a negative, with momentum.

    d     = eps_pos - eps_neg
    mu    = min(1, s_S |d|) where d < lambda, else 0
    gamma = mu (eps_neg - eps_0) + s_m nu
    nu    <- beta_m nu + (1 - beta_m) gamma           at every step, warm-up included
    eps   = eps_0 + w (eps_pos - eps_0 - gamma)       from step `warmup` on; gamma = 0 before

Schramowski et al. 2023, eqs. 3-8, with mu and the updating in warm-up as in the authors' code.
All of it is elementwise on (B, C, H, W). Three predictions a step.

`mu` jumps where d passes lambda (by min(1, s_S lambda), so not in the weak presets): a rounding
error of the predictions can flip an element. Runs agree closely where predictions are batched
alike; the order here is that of diffusers' `StableDiffusionPipelineSafe`: empty, prompt, negative.

The warm-up counts steps by index, and the published numbers belong to runs of 50. As published
they are taken as they are in runs of any length, so that in a shorter run the warm-up is a
larger share; a run that would end within its warm-up is refused, since it would be undefended.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch

from ine.errors import IneError, did_you_mean
from ine.guidance.cfg import classifier_free
from ine.guidance.method import Method, MethodSession
from ine.guidance.negative import Negative
from ine.guidance.protocol import (
    Cost,
    Prompts,
    QueryUNet,
    Session,
    Step,
    UNetQuery,
)
from ine.guidance.sld_presets import DEFAULT, PRESETS
from ine.text.condition import Condition


def safe_latent_step(
    empty: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    momentum: torch.Tensor,
    *,
    scale: float,
    strength: float,
    threshold: float,
    momentum_scale: float,
    momentum_beta: float,
    warmed_up: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (guided prediction, next momentum), each (B, C, H, W).

    Args:
        empty: Noise prediction eps_0 of the empty text, (B, C, H, W).
        positive: Noise prediction eps_pos of the prompts, (B, C, H, W).
        negative: Noise prediction eps_neg of what is steered away from, (B, C, H, W).
        momentum: nu of the step before, (B, C, H, W); zeros at first.
        scale: Classifier-free guidance scale w; the safety term is multiplied by it too.
        strength: s_S, 0 or more.
        threshold: lambda, in units of predicted noise.
        momentum_scale: s_m, in [0, 1].
        momentum_beta: beta_m, in [0, 1).
        warmed_up: Whether the warm-up is over; until then the prediction is plain guidance.

    Sources:
        Schramowski et al. 2023, eqs. 3-8.
    """
    difference = positive - negative
    weight = (difference.abs() * strength).clamp(max=1)
    weight = torch.where(difference >= threshold, 0, weight)
    gamma = weight * (negative - empty) + momentum_scale * momentum
    momentum = momentum_beta * momentum + (1 - momentum_beta) * gamma
    if not warmed_up:
        return classifier_free(empty, positive, scale), momentum
    return empty + scale * (positive - empty - gamma), momentum


@dataclass(frozen=True)
class SafeLatent(Method):
    """Safe latent diffusion; by default with the preset "medium"."""

    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)

    negative: Negative = field(default_factory=Negative)

    strength: float = PRESETS[DEFAULT]["strength"]
    """s_S, 0 or more; mu is at most 1, so that from some thousands on it changes little."""

    threshold: float = PRESETS[DEFAULT]["threshold"]
    """lambda, 0 or more, in units of predicted noise; larger steers more elements."""

    momentum_scale: float = PRESETS[DEFAULT]["momentum_scale"]
    """s_m, in [0, 1]; a steady direction is steered by 1 / (1 - s_m) times as much in the end."""

    momentum_beta: float = PRESETS[DEFAULT]["momentum_beta"]
    """beta_m, in [0, 1): how much of the momentum is kept from step to step."""

    warmup: int = PRESETS[DEFAULT]["warmup"]
    """Steps of plain guidance at the start of a run, by index; fewer than the run has."""

    def __post_init__(self) -> None:
        """Raise `IneError` for a setting out of its range."""
        for name in ("strength", "threshold"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise IneError(f"sld: {name} is {value}; give a finite number of 0 or more")
        if not 0 <= self.momentum_scale <= 1:
            raise IneError(
                f"sld: momentum_scale is {self.momentum_scale}; give a number in [0, 1], with "
                "more the momentum feeds itself and grows without end"
            )
        if not 0 <= self.momentum_beta < 1:
            raise IneError(
                f"sld: momentum_beta is {self.momentum_beta}; give a number in [0, 1), at 1 the "
                "momentum never moves"
            )
        if not isinstance(self.warmup, int) or self.warmup < 0:
            raise IneError(f"sld: warmup is {self.warmup}; give a whole number of steps, 0 or more")

    def cost(self, scale: float, steps: int) -> Cost:
        """Return three evaluations per step, fewer where the warm-up has no momentum."""
        return Cost(3 * steps, exact=not self.warmup)

    @classmethod
    def build(cls, negative: Negative, preset: str | None, settings: dict[str, Any]) -> Self:
        """Return a preset with some settings replaced."""
        return cls.preset(preset or DEFAULT, negative, **settings)

    @classmethod
    def preset(
        cls, name: str = DEFAULT, negative: Negative | None = None, **overrides: Any
    ) -> Self:
        """Return the settings of a preset, some of them replaced.

        Args:
            name: A name of `PRESETS`.
            negative: What to steer away from.
            overrides: Other fields by name; None leaves the preset's value.

        Raises:
            IneError: The preset or a field is unknown, or a value makes no sense.
        """
        if name not in PRESETS:
            raise IneError(
                f"sld: preset {name!r} is unknown{did_you_mean(name, PRESETS)}; "
                f"known: {', '.join(PRESETS)}"
            )
        known = [f.name for f in fields(cls) if f.name != "negative"]
        for key in overrides:
            if key not in known:
                raise IneError(
                    f"sld: setting {key!r} is unknown{did_you_mean(key, known)}; "
                    f"known: {', '.join(known)}"
                )
        given = {key: value for key, value in overrides.items() if value is not None}
        return cls(negative or Negative(), **{**PRESETS[name], **given})

    @contextmanager
    def begin(self, prompts: Prompts) -> Iterator[Session]:
        """Encode prompts, negative and the empty text once."""
        yield _Session(
            settings=self,
            positive=prompts.positive(),
            empty=prompts.empty(),
            negative=self.negative.condition(prompts),
            scale=prompts.scale,
        )


@dataclass(kw_only=True)
class _Session(MethodSession):
    settings: SafeLatent
    positive: Condition
    empty: Condition
    negative: Condition
    scale: float

    momentum: torch.Tensor | None = None
    """nu of every picture in noise predictions, (B, C, H, W); None before the first step.

    A picture that a gate leaves out keeps its row as it is.
    """

    def predict(
        self, step: Step, query_unet: QueryUNet, pictures: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        settings = self.settings
        if settings.warmup >= step.count:
            raise IneError(
                f"sld: the warm-up takes {settings.warmup} steps and the run has {step.count}, so "
                f"nothing would be defended; set warmup below {step.count}, or take more steps"
            )
        queries = [
            UNetQuery.of("empty", self.empty, pictures),
            UNetQuery.of("positive", self.positive, pictures),
        ]
        warmed_up = step.index >= settings.warmup
        if not warmed_up and settings.momentum_scale == 0:
            # No momentum to build up: the negative would be asked about for nothing.
            out = query_unet(queries)
            return classifier_free(out["empty"], out["positive"], self.scale)
        out = query_unet([*queries, UNetQuery.of("negative", self.negative, pictures)])
        # Strength, threshold and momentum are stated in noise predictions. For v-prediction
        # eps = sqrt(abar) v + sqrt(1 - abar) x_t, of which the second term drops out of every
        # difference: scaled by sqrt(abar) the formula applies as it is, and scaled back its
        # result is a v again.
        unit: float | torch.Tensor = 1
        if step.prediction_type == "v_prediction":
            unit = step.alpha_bar.sqrt().clamp_min(1e-6)  # zero where a run begins with no signal
        if self.momentum is None:
            shape = (len(self.positive), *out["empty"].shape[1:])
            self.momentum = out["empty"].new_zeros(shape)
        rows = slice(None) if pictures is None else list(pictures)
        output, self.momentum[rows] = safe_latent_step(
            unit * out["empty"],
            unit * out["positive"],
            unit * out["negative"],
            self.momentum[rows],
            scale=self.scale,
            strength=settings.strength,
            threshold=settings.threshold,
            momentum_scale=settings.momentum_scale,
            momentum_beta=settings.momentum_beta,
            warmed_up=warmed_up,
        )
        return output / unit
