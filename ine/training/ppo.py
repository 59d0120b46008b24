"""Proximal policy optimisation of a language model on a reward of whole answers.

A rollout (`ine.training.rollouts`) is used for some epochs of optimiser steps by
`ine.optim.minimise`, which resumes at the start of a rollout.

Sources:
    Schulman et al. 2017, Ziegler et al. 2019.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ine.optim import StateFile, minimise
from ine.runtime import generator_for
from ine.store.tensors import Notes, Tensors
from ine.training.advantages import mean_of, policy_loss, value_loss
from ine.training.answers import check_lengths
from ine.training.policy import Policy, Reference, rows_of
from ine.training.ppo_settings import PpoSettings
from ine.training.rollouts import Experience, ExplodedError, RewardOf, asked_prompts, roll

log = logging.getLogger("ine")

MOST_RATIO = 10.0
"""Mean probability ratio of a minibatch from which on training counts as exploded, as in trl."""


@dataclass(frozen=True, kw_only=True)
class PpoResult:
    """What happened; the policy itself was changed in place."""

    rows: tuple[dict[str, float], ...]
    """One per rollout: its rewards, KL divergence, lengths and losses."""

    best: int
    """The rollout, from 0, whose answers earned the most; they were drawn before its updates."""

    stopped: str = ""
    """Why training ended early; the policy then is that of `best`."""


def train_ppo(
    policy: Policy,
    reference: Reference,
    prompts: Sequence[str],
    query_of: Callable[[str], str],
    reward_of: RewardOf,
    settings: PpoSettings,
    *,
    state: StateFile | None = None,
    on_rollout: Callable[[int, dict[str, float]], None] | None = None,
) -> PpoResult:
    """Train a policy in place; a state file resumes it to the same bytes.

    Args:
        policy: Changed in place.
        reference: What the KL divergence is measured from.
        prompts: As users write them; every epoch has its own order.
        query_of: A prompt as the model reads it, with instruction and template.
        reward_of: Scores answers; not finite is an error, never a low score.
        settings: Of the training.
        state: Where it is kept, by default nowhere; `every` is set here.
        on_rollout: Called with (finished rollouts, the last one's row).

    Raises:
        PromptError: There is no prompt, or one does not fit into the context.
        IneError: A reward, a loss or a gradient is not finite, or the state is of another run.
    """
    check_lengths(policy.model, policy.tokenizer, list(map(query_of, prompts)), settings.drawing)
    run = _Run(policy, reference, prompts, query_of, reward_of, settings, on_rollout)
    parameters = policy.parameters
    total = settings.rollouts_for(len(prompts)) * settings.updates
    state = state or StateFile(command="ine posi train")
    try:
        minimise(
            "ppo",
            parameters,
            torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0),
            run.loss_of,
            total,
            advice="lower the learning rate",
            state=replace(state, every=settings.updates),
            history=run,
            accumulation=settings.accumulation,
            max_grad_norm=settings.max_grad_norm,
            lr_of=lambda u: settings.learning_rate * (1 + math.cos(math.pi * u / total)) / 2,
        )
    except ExplodedError as error:
        log.warning("ppo: %s; the policy of rollout %d is kept", error, run.best[0] + 1)
        run.restore_best()
        return PpoResult(rows=tuple(run.rows), best=run.best[0], stopped=str(error))
    return PpoResult(rows=tuple(run.rows), best=run.best[0])


class _Run:
    """The rollout in work, and what is kept beside the parameters; an `ine.optim.History`."""

    def __init__(
        self,
        policy: Policy,
        reference: Reference,
        prompts: Sequence[str],
        query_of: Callable[[str], str],
        reward_of: RewardOf,
        settings: PpoSettings,
        on_rollout: Callable[[int, dict[str, float]], None] | None,
    ) -> None:
        self.policy, self.reference, self.prompts = policy, reference, list(prompts)
        self.query_of, self.reward_of, self.settings = query_of, reward_of, settings
        self.on_rollout = on_rollout
        self.control = settings.kl
        self.rows: list[dict[str, float]] = []
        self.best: tuple[int, float] = (-1, -math.inf)
        self.kept: Tensors = {}
        self.experience: Experience | None = None
        self.losses: list[tuple[float, float]] = []

    def loss_of(self, update: int, part: int) -> torch.Tensor:
        """Return the loss of one minibatch; a rollout's first makes the rollout."""
        rollout, within = divmod(update, self.settings.updates)
        if within == 0 and part == 0:
            asked = asked_prompts(self.prompts, rollout, self.settings)
            self.experience = roll(
                self.policy,
                self.reference,
                asked,
                self.query_of,
                self.reward_of,
                self.settings,
                rollout,
                self.control.weight,
            )
            self._keep_if_best(rollout, self.experience.row["reward"])
            self.losses = []
        assert self.experience is not None
        return self._loss(self.experience, self._minibatch(rollout, within, part))

    def _minibatch(self, rollout: int, within: int, part: int) -> torch.Tensor:
        """Return the rows of a minibatch; every epoch has its own order."""
        s = self.settings
        epoch, step = divmod(within, s.batch // (s.minibatch * s.accumulation))
        order = torch.randperm(
            s.batch, generator=generator_for(s.seed, "minibatches", rollout, epoch)
        )
        first = (step * s.accumulation + part) * s.minibatch
        return order[first : first + s.minibatch]

    def _loss(self, found: Experience, rows: torch.Tensor) -> torch.Tensor:
        new, values = self.policy.read(rows_of(found.answers, rows))
        mask, old, s = found.mask[rows], found.old[rows], self.settings
        ratio = mean_of((new.detach() - old).exp(), mask).item()
        if ratio > MOST_RATIO:
            raise ExplodedError(f"a minibatch's probabilities grew {ratio:.3g} times")
        actor = policy_loss(new, old, found.advantages[rows], mask, s.clip)
        critic = value_loss(values, found.values[rows], found.returns[rows], mask, s.clip_value)
        self.losses.append((actor.item(), critic.item()))
        return actor + s.value_weight * critic

    def _keep_if_best(self, rollout: int, reward: float) -> None:
        if reward > self.best[1]:
            self.best = (rollout, reward)
            self.kept = {n: p.detach().clone() for n, p in self.policy.parameters.items()}

    def restore_best(self) -> None:
        """Put the best policy back."""
        with torch.no_grad():
            for name, parameter in self.policy.parameters.items():
                if name in self.kept:
                    parameter.copy_(self.kept[name])

    def record(self, step: int, loss: float) -> None:
        """Close a rollout after its last update."""
        if step % self.settings.updates or self.experience is None:
            return
        actors, critics = zip(*self.losses, strict=True)
        row = self.experience.row | {
            "policy_loss": sum(actors) / len(actors),
            "value_loss": sum(critics) / len(critics),
        }
        self.control = self.control.after(row["kl"], self.settings.batch)
        self.rows.append(row)
        if self.on_rollout:
            self.on_rollout(len(self.rows), row)

    def pack(self) -> tuple[Tensors, Notes]:
        """Return what a state file keeps."""
        tensors = {f"best.{name}": tensor for name, tensor in self.kept.items()}
        notes = {"rows": self.rows, "best": list(self.best), "kl_weight": self.control.weight}
        return tensors, notes

    def unpack(self, tensors: Tensors, notes: Notes) -> None:
        """Take over what a state file kept."""
        self.rows, self.best = list(notes["rows"]), (notes["best"][0], notes["best"][1])
        self.control = self.settings.kl.model_copy(update={"weight": notes["kl_weight"]})
        device: Any = self.policy.head.weight.device
        self.kept = {
            name.removeprefix("best."): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith("best.")
        }
