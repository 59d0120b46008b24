"""Lay values over a module: replaced, added to, or moved by a weighted difference."""

import copy

import torch
from torch import nn

from ine.models.fit import same_values
from ine.models.lowrank import LowRank


@torch.no_grad()
def laid_over(module, steps):
    """Return a frozen copy of a module with values laid over it.

    Tensors that stay share their memory with the base's; one laid tensor at a time is worked on,
    in float32, and rounded once.

    Args:
        module: The base, not changed.
        steps: {name in its state dict: [(tensor or `LowRank`, weight or None), ...]}, in order.
            A tensor without a weight replaces what is there; with one it adds weight * (tensor -
            base). A `LowRank` adds weight * difference, with a weight of 1 where none is given.
    """
    own = dict(module.named_parameters())
    # deepcopy takes what the memo has as copied already.
    memo = {
        id(p): nn.Parameter(p.data if name not in steps else torch.empty_like(p), False)
        for name, p in own.items()
    }
    made, base = copy.deepcopy(module, memo).eval(), module.state_dict()
    state = made.state_dict()
    for name, ordered in steps.items():
        state[name].copy_(composed(base[name], ordered))
    return made


def composed(base, ordered):
    """Return one tensor with all steps laid over it, as `laid_over` says; in no fixed dtype."""
    made = base
    for value, weight in ordered:
        if isinstance(value, LowRank):
            step = value.difference(base.shape).to(base.device)
            made = made.to(base.device).float() + (1.0 if weight is None else weight) * step
        elif weight is None:
            made = value
        else:
            step = value.to(base.device).float() - base.float()
            made = made.to(base.device).float() + weight * step
    return made


def differing(base, made, names):
    """Return those of the named tensors that differ between two modules by more than rounding."""
    ours, theirs = base.state_dict(), made.state_dict()
    return [name for name in names if not same_values(theirs[name].cpu(), ours[name].cpu())]
