"""Rollouts of PPO: prompts, an answer each, what the answers earned, and their advantages.

Shape letters: B answers, T tokens of the longest answer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ine.errors import IneError
from ine.runtime import generator_for
from ine.training.advantages import advantages_of, token_rewards, whitened
from ine.training.answers import Answers, draw_answers
from ine.training.policy import Policy, Reference
from ine.training.ppo_settings import PpoSettings

Scores = Sequence[Mapping[str, float]]
"""One mapping per answer: "reward", and other numbers for the log."""

RewardOf = Callable[[Sequence[str], Sequence[str]], Scores]
"""(prompts, answers) to their scores."""


class ExplodedError(Exception):
    """The policy left the reference, or its last self, by too much."""


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A rollout."""

    answers: Answers
    old: torch.Tensor
    """Log-probabilities of the tokens by the policy that drew them, (B, T)."""

    values: torch.Tensor
    """The value head's estimates before each token, (B, T)."""

    advantages: torch.Tensor
    """Of mean 0 and variance 1, (B, T)."""

    returns: torch.Tensor
    """(B, T)."""

    mask: torch.Tensor
    """1 where an answer has a token, (B, T)."""

    row: dict[str, float]
    """For the log: means of the scores, KL divergence and its weight, tokens, share that ended."""


def asked_prompts(prompts: Sequence[str], rollout: int, settings: PpoSettings) -> list[str]:
    """Return the prompts of a rollout; the whole list is gone through again and again."""
    found = []
    for place in range(rollout * settings.batch, (rollout + 1) * settings.batch):
        epoch, k = divmod(place, len(prompts))
        order = torch.randperm(
            len(prompts), generator=generator_for(settings.seed, "prompts", epoch)
        )
        found.append(prompts[int(order[k])])
    return found


@torch.no_grad()
def roll(
    policy: Policy,
    reference: Reference,
    asked: Sequence[str],
    query_of: Callable[[str], str],
    reward_of: RewardOf,
    settings: PpoSettings,
    rollout: int,
    weight: float,
) -> Experience:
    """Return a rollout.

    Args:
        policy: Draws the answers.
        reference: What the KL divergence is measured from.
        asked: The prompts, B texts.
        query_of: A prompt as the model reads it.
        reward_of: Scores the answers.
        settings: Of the training.
        rollout: Its number, from 0, which seeds the drawing.
        weight: Of the KL penalty.

    Raises:
        ExplodedError: The KL divergence is above `settings.max_kl`.
        IneError: A reward is not finite.
    """
    seeds = [generator_for(settings.seed, "answer", rollout, k) for k in range(len(asked))]
    queries = [query_of(prompt) for prompt in asked]
    answers = draw_answers(policy.model, policy.tokenizer, queries, seeds, settings.drawing)
    old, values = policy.read(answers)
    mask = answers.answer_mask.to(old.device)
    divergence = (old - reference(answers)) * mask
    mean = divergence.sum(dim=1).mean().item()
    # Before the reward, which costs pictures.
    if not abs(mean) <= settings.max_kl:
        raise ExplodedError(f"the KL divergence of rollout {rollout + 1} is {mean:.3g} nats")
    scored = _checked(reward_of(asked, answers.texts), rollout)
    scores = torch.tensor([one["reward"] for one in scored], device=old.device)
    rewards = token_rewards(scores, divergence, mask, weight)
    advantages, returns = advantages_of(rewards, values, mask, settings.gamma, settings.decay)
    return Experience(
        answers=answers,
        old=old,
        values=values,
        advantages=whitened(advantages, mask),
        returns=returns,
        mask=mask,
        row={**_means(scored), **_about(answers), "kl": mean, "kl_weight": weight},
    )


def _checked(scored: Scores, rollout: int) -> Scores:
    for number, one in enumerate(scored, start=1):
        if not math.isfinite(one["reward"]):
            raise IneError(
                f"ppo: the reward of answer {number} in rollout {rollout + 1} is {one['reward']}; "
                "a picture or a judge failed: repair it and run again, which resumes at this "
                "rollout"
            )
    return scored


def _means(scored: Scores) -> dict[str, float]:
    return {name: sum(one[name] for one in scored) / len(scored) for name in scored[0]}


def _about(answers: Answers) -> dict[str, float]:
    lengths = answers.answer_mask.sum(dim=1)
    return {"tokens": lengths.mean().item(), "ended": sum(answers.ended) / len(answers.ended)}
