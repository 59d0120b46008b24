"""The arithmetic of proximal policy optimisation: advantages, clipped losses, the KL penalty.

Pure functions of tensors. Shape letters: B answers, T tokens of an answer. A mask is 1 where an
answer has a token; every answer's tokens come first, so a mask is ones and then zeros.

Sources:
    Schulman et al. 2016 (generalised advantage estimation), Schulman et al. 2017 (PPO), Ziegler et
    al. 2019 (the KL penalty per token, its adaptive weight, the clipped value loss).
"""

from typing import Annotated

import torch
from pydantic import Field

from ine.yaml_files import Section

NOTHING = 1e-8
"""Added to a variance before its root."""


class KlControl(Section):
    """The weight of the KL penalty, moved so that the KL divergence nears a target."""

    weight: Annotated[float, Field(ge=0)] = 0.2
    """Of the penalty, 0 or more."""

    target: Annotated[float, Field(gt=0)] = 6.0
    """KL divergence of an answer from the reference in nats; POSI's release sets .02."""

    horizon: Annotated[float, Field(gt=0)] = 10_000.0
    """Answers after which an error of a fifth has moved the weight by a fifth."""

    def after(self, divergence: float, answers: int) -> "KlControl":
        """Return the control after a batch.

        Args:
            divergence: The batch's mean KL divergence per answer, in nats.
            answers: In the batch.

        Sources:
            Ziegler et al. 2019, section 2.2.
        """
        error = min(0.2, max(-0.2, divergence / self.target - 1))
        weight = self.weight * (1 + error * answers / self.horizon)
        return KlControl(weight=weight, target=self.target, horizon=self.horizon)


def mean_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values where the mask is 1, a scalar; (B, T) both."""
    return (values * mask).sum() / mask.sum()


def whitened(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return values shifted and scaled to mean 0 and variance 1 where the mask is 1, (B, T)."""
    mean = mean_of(values, mask)
    variance = mean_of((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + NOTHING) * mask


def token_rewards(
    scores: torch.Tensor, divergence: torch.Tensor, mask: torch.Tensor, weight: float
) -> torch.Tensor:
    """Return the reward of each token: the KL penalty, and at the end the answer's score.

    Args:
        scores: One per answer, (B,).
        divergence: log pi(token) - log pi_reference(token), (B, T).
        mask: (B, T), at least one token per answer.
        weight: Of the penalty.
    """
    rewards = -weight * divergence * mask
    last = mask.sum(dim=1).long() - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def advantages_of(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (advantages, returns), both (B, T), 0 where the mask is.

    Args:
        rewards: Per token, (B, T).
        values: The value head's estimate before each token, (B, T).
        mask: (B, T); after an answer's last token the value is 0.
        gamma: Discount, in [0, 1].
        decay: Lambda, in [0, 1]: 0 is one step's temporal difference, 1 the whole rest.

    Sources:
        Schulman et al. 2016, eq. 16.
    """
    rewards, values = rewards * mask, values * mask
    found, later = [], torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(later)
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + gamma * following - values[:, t]
        later = (error + gamma * decay * later) * mask[:, t]
        following = values[:, t]
        found.append(later)
    advantages = torch.stack(found[::-1], dim=1)
    return advantages, (advantages + values) * mask


def policy_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return the clipped policy loss, a scalar.

    Args:
        new: Log-probabilities of the tokens by the trained policy, (B, T).
        old: Those by the policy that drew them, (B, T).
        advantages: (B, T).
        mask: (B, T).
        clip: How far the ratio of both may leave 1 before it earns nothing.

    Sources:
        Schulman et al. 2017, eq. 7, negated.
    """
    ratio = ((new - old) * mask).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return mean_of(torch.maximum(-advantages * ratio, -advantages * clipped), mask)


def value_loss(
    new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return half the clipped squared error of the values, a scalar; tensors are (B, T).

    Args:
        new: Values by the trained head.
        old: Values by the head when the answers were drawn.
        returns: What the values should be.
        mask: 1 where an answer has a token.
        clip: How far a value may move from the old one before the move earns nothing.
    """
    clipped = torch.clamp(new, old - clip, old + clip)
    return 0.5 * mean_of(torch.maximum((new - returns) ** 2, (clipped - returns) ** 2), mask)
