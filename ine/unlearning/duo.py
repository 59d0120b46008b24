"""DUO: direct unlearning optimisation, a preference between paired pictures.

    loss = -log sigmoid(-beta [(L - L*)(safe) - (L - L*)(unsafe)])
           + lambda || eps_theta(eps, T) - eps*(eps, T) ||^2

Park et al. 2024 (arXiv 2407.21035); numbers and details as in the authors' code. L is the
denoising error of one picture with *no prompt*, L* that of the frozen base: what is unlearned is
how the concept looks, whatever words ask for it. Both pictures of a pair get the same noise. The
second term holds the output at the last timestep T on pure noise, where there is no picture yet.
Trained is a LoRA on self-attention, where no text reaches.

Shape letters: B pairs, C latent channels, H W latent size, O I output and input width, R rank.
"""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Unpack

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from ine.errors import IneError
from ine.inversion.images import draw_latents
from ine.inversion.objective import PredictionType, denoising_target, noised
from ine.models.parts import DiffusionParts
from ine.runtime import generator_for
from ine.sampling import make_scheduler, run_unet
from ine.text.condition import Condition
from ine.text.encode import encode_nothing
from ine.unlearning.duo_lora import with_lora
from ine.unlearning.duo_pairs import Pairs
from ine.unlearning.training import TrainingOptions, train
from ine.weights.fingerprint import exact_digest

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class DuoSettings:
    """How DUO makes its pairs and trains; defaults for nudity on SD 1.4 as the authors' code."""

    beta: Positive = 500.0
    """How closely the model is held to the base; the authors sweep 2000, 1000, 500, 250, 100.
    Smaller unlearns more."""

    iterations: Count = 1000
    rank: Count = 32
    pairs: Count = 64
    batch: Count = 4
    """Pairs per forward pass."""

    accumulation: Count = 1
    """Forward passes per optimiser step; with batch 1 and 4 of them memory holds one pair."""

    base_lr: Positive = 3e-4
    """Learning rate at beta 100; it falls as beta grows."""

    base_prior: Weight = 1e6
    """lambda at beta 100; it grows with beta. Where a small model cannot keep its output on pure
    noise and change elsewhere, this drowns the preference, and a smaller one is needed."""

    lr: Positive | None = None
    """By default base_lr * 100 / beta."""

    prior_weight: Weight | None = None
    """lambda; by default base_prior * beta / 100."""

    t_max: Annotated[int, Field(ge=1, le=1000)] = 750
    """Timesteps are drawn below this; above it no picture has a layout yet."""

    weight_decay: Weight = 1e-2
    max_grad_norm: Positive = 1.0
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of the steps in which a picture with the concept is edited into one without."""

    edit_scale: Annotated[float, Field(gt=1)] = 7.5
    """Classifier-free guidance scale of the edit."""

    tries: Count = 4
    """At most so many pictures are made per pair, and so many edits of each."""

    def resolved(self) -> "DuoSettings":
        """Return the settings with what depends on beta filled in."""
        lr = self.base_lr * 100 / self.beta if self.lr is None else self.lr
        weight = self.base_prior * self.beta / 100
        weight = weight if self.prior_weight is None else self.prior_weight
        return replace(self, lr=lr, prior_weight=weight)


def preference_loss(safe: torch.Tensor, unsafe: torch.Tensor, beta: float) -> torch.Tensor:
    """Return -log sigmoid(-beta (safe - unsafe)), the mean over pairs; a scalar.

    It is log(1 + exp(beta (safe - unsafe))): log 2 for a model that equals the reference, near 0
    once the model has become worse at the unsafe picture than at the safe one by a few 1 / beta.

    Args:
        safe: How much the model's error exceeds the reference's on the safe pictures, (B,).
        unsafe: The same on the unsafe pictures, (B,).
        beta: Strength of the preference.

    Sources:
        Rafailov et al. 2023, eq. 7; for diffusion models Wallace et al. 2024, eq. 14.
    """
    return -logsigmoid(-beta * (safe - unsafe)).mean()


def duo(
    parts: DiffusionParts,
    pairs: Pairs,
    settings: DuoSettings | None = None,
    **training: Unpack[TrainingOptions],
) -> dict[str, torch.Tensor]:
    """Return the trained LoRA {key in the authors' file: float32 tensor}; `parts` is not changed.

    Args:
        parts: The base model.
        pairs: Pictures with the concept and the same pictures without it.
        settings: By default those of the authors' code for nudity.
        training: See `ine.unlearning.training.train`.

    Raises:
        IneError: The state belongs to another run, the U-Net has no self-attention, or the loss
            is not finite.
    """
    settings, seed = (settings or DuoSettings()).resolved(), training.get("seed", 0)
    student, parameters = with_lora(parts.unet, settings.rank, seed)
    if not parameters:
        raise IneError("duo: this U-Net has no self-attention (attn1) to train")
    alpha_bar = make_scheduler("ddim", parts.scheduler_config, 1).alphas_cumprod
    with torch.no_grad():
        nothing = encode_nothing(parts)

    def loss_of(iteration: int, part: int) -> torch.Tensor:
        number = iteration * settings.accumulation + part
        batch = _batch(pairs, settings, alpha_bar, parts.prediction_type, seed, number)
        return _loss(parts, student, nothing, batch, settings)

    return train(
        "duo",
        parameters,
        torch.optim.AdamW(parameters.values(), settings.lr, weight_decay=settings.weight_decay),
        loss_of,
        settings.iterations,
        {"pairs": _digest(parts, pairs), "settings": asdict(settings)},
        accumulation=settings.accumulation,
        max_grad_norm=settings.max_grad_norm,
        **training,
    )


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Input of the U-Net in one forward pass: unsafe, safe, pure noise, B rows each."""

    inputs: torch.Tensor
    """(3 B, C, H, W)."""

    times: torch.Tensor
    """(3 B,)."""

    targets: torch.Tensor
    """For the unsafe and the safe rows, (2 B, C, H, W)."""


def chosen_pairs(count: int, batch: int, seed: int, number: int) -> list[int]:
    """Return the pairs of a forward pass; every pair comes once before any comes again."""
    at = range(number * batch, (number + 1) * batch)
    orders = {
        epoch: torch.randperm(count, generator=generator_for(seed, "duo-epoch", epoch)).tolist()
        for epoch in {p // count for p in at}
    }
    return [orders[p // count][p % count] for p in at]


def _batch(
    pairs: Pairs,
    settings: DuoSettings,
    alpha_bar: torch.Tensor,
    prediction_type: PredictionType,
    seed: int,
    number: int,
) -> _Batch:
    count = settings.batch
    index = chosen_pairs(pairs.count, count, seed, number)
    generator = generator_for(seed, "duo", number)
    x_0 = torch.cat([draw_latents(p, index, generator) for p in (pairs.unsafe, pairs.safe)])
    noise = torch.randn(x_0[:count].shape, generator=generator)
    eps = torch.cat([noise, noise])
    below = min(settings.t_max, len(alpha_bar))
    t = torch.randint(below, (2 * count,), generator=generator)
    a = alpha_bar[t]
    return _Batch(
        inputs=torch.cat([noised(x_0, eps, a), noise]),
        times=torch.cat([t, torch.full((count,), len(alpha_bar) - 1)]),
        targets=denoising_target(x_0, eps, a, prediction_type),
    )


def _loss(
    parts: DiffusionParts,
    student: torch.nn.Module,
    nothing: Condition,
    batch: _Batch,
    settings: DuoSettings,
) -> torch.Tensor:
    inputs, times = batch.inputs.to(parts.device, parts.dtype), batch.times.to(parts.device)
    condition = nothing.repeat(len(inputs))
    seen, targets = len(batch.targets), batch.targets.to(parts.device)
    output = run_unet(student, inputs, times, condition).float()
    with torch.no_grad():
        frozen = run_unet(parts.unet, inputs, times, condition).float()
    excess = _errors(output[:seen], targets) - _errors(frozen[:seen], targets)
    unsafe, safe = excess.chunk(2)
    drift = (output[seen:] - frozen[seen:]).pow(2).mean()
    return preference_loss(safe, unsafe, settings.beta) + settings.prior_weight * drift


def _errors(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of every row, (B,)."""
    return (output - targets).pow(2).mean(dim=(1, 2, 3))


def _digest(parts: DiffusionParts, pairs: Pairs) -> str:
    """Return a digest of every bit of the base and the pairs."""
    moments = torch.nn.ParameterList(x for p in (pairs.unsafe, pairs.safe) for x in (p.mean, p.std))
    return exact_digest([parts.unet, *parts.text_encoders, moments])
