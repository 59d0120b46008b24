"""DUO: direct unlearning optimisation, a preference between paired pictures.

    loss = -log sigmoid(-beta [(L - L*)(safe) - (L - L*)(unsafe)])
           + lambda || eps_theta(eps, T) - eps*(eps, T) ||^2

Park et al. 2024 (arXiv 2407.21035); numbers and details as in the authors' code. L is the
denoising error of one picture with *no prompt*, L* that of the frozen base: what is unlearned is
how the concept looks, whatever words ask for it. Both pictures of a pair get the same noise. The
second term holds the output at the last timestep T on pure noise, where no picture has begun.
Trained is a LoRA on self-attention, where no text reaches.

Shape letters: B pairs, C latent channels, H W latent size, O I output and input width, R rank.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import linear, logsigmoid

from ine.errors import IneError
from ine.inversion.images import draw_latents
from ine.inversion.objective import denoising_target, noised
from ine.models.fingerprint import exact_digest
from ine.models.laying import shared_copy
from ine.runtime import generator_for
from ine.sampling import make_scheduler, run_unet
from ine.text import encode_nothing
from ine.unlearning.training import Resumable, key_of, train

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of self-attention that get a LoRA."""

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

    def resolved(self):
        """Return the settings with what depends on beta filled in."""
        lr = self.base_lr * 100 / self.beta if self.lr is None else self.lr
        weight = self.base_prior * self.beta / 100
        weight = weight if self.prior_weight is None else self.prior_weight
        return replace(self, lr=lr, prior_weight=weight)


def preference_loss(safe, unsafe, beta):
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


def adapted(unet):
    """Return the names of the layers that get a LoRA."""
    return [
        path
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and _is_projection(path)
    ]


def _is_projection(path):
    _, found, leaf = path.rpartition(".attn1.")
    return bool(found) and leaf in PROJECTIONS


def with_lora(unet, rank, seed):
    """Return a copy of a U-Net with a LoRA on its self-attention, and the LoRA's parameters.

    The copy shares the weights of the U-Net, which stays as it is. Down matrices are Gaussian of
    spread 1 / rank, up matrices zero, so that the copy begins as the U-Net to the bit.

    Args:
        unet: The frozen model.
        rank: R; alpha is the same, so the scale is 1.
        seed: Where the Gaussian comes from.

    Returns:
        (copy, {key in the authors' file: float32 parameter, (R, I) or (O, R)}).

    Sources:
        Hu et al. 2021, section 4.1.
    """
    student, parameters = shared_copy(unet), {}
    for path in adapted(student):
        layer = student.get_submodule(path)
        generator = generator_for(seed, "duo-lora", path)
        down = torch.randn((rank, layer.in_features), generator=generator) / rank
        up = torch.zeros(layer.out_features, rank)
        down, up = (torch.nn.Parameter(x.to(layer.weight.device)) for x in (down, up))
        layer.register_forward_hook(partial(_added, down, up))
        parameters[f"unet.{path}.lora.down.weight"] = down
        parameters[f"unet.{path}.lora.up.weight"] = up
    return student, parameters


def _added(down, up, layer, inputs, output):
    # In float32 also beneath a float16 model, whose steps are larger than most of what is learned.
    return output + linear(linear(inputs[0].float(), down), up).to(output.dtype)


def duo(
    parts,
    pairs,
    settings=None,
    *,
    seed=0,
    state: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    save_every: int = 10,
    force: bool = False,
):
    """Return the trained LoRA {key in the authors' file: float32 tensor}; `parts` is not changed.

    Args:
        parts: The base model.
        pairs: `Pairs`.
        settings: `DuoSettings`.
        seed: Where all randomness comes from.
        state: File to resume from and to save to; the result is byte-equal either way.
        on_step: Called with (iteration, loss).
        save_every: Iterations between saves.
        force: Begin anew where the state belongs to another run.

    Raises:
        IneError: The state belongs to another run, the U-Net has no self-attention, or the loss
            is not finite.
    """
    settings = (settings or DuoSettings()).resolved()
    student, parameters = with_lora(parts.unet, settings.rank, seed)
    if not parameters:
        raise IneError("duo: this U-Net has no self-attention (attn1) to train")
    alpha_bar = make_scheduler("ddim", parts.scheduler_config, 1).alphas_cumprod
    with torch.no_grad():
        nothing = encode_nothing(parts)

    def loss_of(iteration, part):
        return _loss(
            parts,
            student,
            nothing,
            _batch(
                pairs,
                settings,
                alpha_bar,
                parts.prediction_type,
                seed,
                iteration * settings.accumulation + part,
            ),
            settings,
        )

    train(
        "duo",
        parameters,
        torch.optim.AdamW(parameters.values(), settings.lr, weight_decay=settings.weight_decay),
        loss_of,
        settings.iterations,
        lr=settings.lr,
        key=key_of(_digest(parts, pairs), asdict(settings), seed),
        resumable=Resumable(path=state, every=save_every, force=force),
        accumulation=settings.accumulation,
        max_grad_norm=settings.max_grad_norm,
        on_step=on_step,
    )
    return {name: p.detach().clone() for name, p in parameters.items()}


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """What the U-Net is asked in one forward pass: unsafe, safe, pure noise, B rows each."""

    inputs: torch.Tensor
    """(3 B, C, H, W)."""

    times: torch.Tensor
    """(3 B,)."""

    targets: torch.Tensor
    """For the unsafe and the safe rows, (2 B, C, H, W)."""


def chosen_pairs(count, batch, seed, number):
    """Return which pairs the pass of a number sees; every pair once before any comes again."""
    at = range(number * batch, (number + 1) * batch)
    orders = {
        epoch: torch.randperm(count, generator=generator_for(seed, "duo-epoch", epoch)).tolist()
        for epoch in {p // count for p in at}
    }
    return [orders[p // count][p % count] for p in at]


def _batch(pairs, settings, alpha_bar, prediction_type, seed, number):
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


def _loss(parts, student, nothing, batch, settings):
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


def _errors(output, targets):
    """Return the mean squared error of every row, (B,)."""
    return (output - targets).pow(2).mean(dim=(1, 2, 3))


def _digest(parts, pairs):
    """Return what tells a base and pairs from others, to the last bit."""
    moments = torch.nn.ParameterList(x for p in (pairs.unsafe, pairs.safe) for x in (p.mean, p.std))
    return exact_digest([parts.unet, *parts.text_encoders, moments])
