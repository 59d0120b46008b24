"""Fit a linear probe. Shape letters: N training rows, F features."""

import torch

from ine.errors import IneError
from ine.guidance.probe import Probe


def fit_probe(features: torch.Tensor, labels: torch.Tensor, ridge: float = 0.03) -> Probe:
    """Return the `Probe` that separates features with the concept from those without.

    Logistic regression on standardised features with a squared penalty, both classes weighted
    equally; fitted by L-BFGS, which is deterministic.

    Args:
        features: (N, F).
        labels: (N,) bool, whether the picture shows the concept.
        ridge: Weight of the penalty, above 0.

    Raises:
        IneError: One of the classes is missing.
    """
    labels = labels.bool()
    if labels.all() or not labels.any():
        kind = "without" if labels.any() else "with"
        raise IneError(f"a probe needs pictures of both kinds; there is none {kind} the concept")
    target = labels.double()
    mean, scale = features.double().mean(0), features.double().std(0).clamp_min(1e-6)
    standard = (features.double() - mean) / scale
    share = target.mean()
    each = torch.where(labels, 0.5 / share, 0.5 / (1 - share))
    weight = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = (loss_of(standard @ weight + bias, target, reduction="none") * each).mean()
        loss = loss + ridge * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    raw = weight.detach() / scale
    return Probe(raw.float(), float(bias.detach() - (raw * mean).sum()))
