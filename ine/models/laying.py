"""Lay values over a module: replaced, added to, or moved by a weighted difference."""

import copy

import torch
from torch import nn

from ine.models.fit import all_finite, same_values
from ine.models.lowrank import LowRank


@torch.no_grad()
def laid_over(module, steps, keep=True, compare=False):
    """Return a frozen module with values laid over it, and which of them differ.

    One tensor at a time is worked on, in float32, and rounded once.

    Args:
        module: The base.
        steps: {name in its state dict: [(tensor or `LowRank`, weight or None), ...]}, in order.
            A tensor without a weight replaces what is there; with one it adds weight * (tensor -
            base). A `LowRank` adds weight * difference, with a weight of 1 where none is given.
        keep: Leave the base as it is and return a copy, which shares the tensors that stay;
            otherwise the base itself takes the values, and nothing is copied.
        compare: Whether to tell which values differ from the base's by more than rounding.

    Returns:
        (the module, names of the tensors that differ).

    Raises:
        OverflowError: A sum leaves the range of the base's dtype, with the tensor's name. A base
            that is not kept is then neither the one model nor the other.
    """
    made = shared_copy(module, steps) if keep else module
    state, base, differing = made.state_dict(), module.state_dict(), []
    for name, ordered in steps.items():
        value = composed(base[name], ordered)
        if compare:
            value = value.to(base[name].dtype)
            if not all_finite(value):
                raise OverflowError(name)
            if not same_values(value.cpu(), base[name].cpu()):
                differing.append(name)
        state[name].copy_(value)
    return made, differing


def shared_copy(module, names=()):
    """Return a frozen copy of a module, of which the named tensors have memory of their own.

    The others are the module's own, so a copy takes no memory for them.
    """
    # deepcopy takes what the memo has as copied already.
    memo = {
        id(p): nn.Parameter(p.data if name not in names else torch.empty_like(p), False)
        for name, p in module.named_parameters()
    }
    return copy.deepcopy(module, memo).eval()


def composed(base, ordered):
    """Return one tensor with all steps laid over it, as `laid_over` says; in no fixed dtype.

    A single tensor that replaces comes back as it is; sums are made in the memory of one of
    their terms.
    """
    made = base
    for value, weight in ordered:
        if isinstance(value, LowRank):
            step = value.difference(base.shape).to(base.device)
        elif weight is None:
            made = value
            continue
        else:
            step = value.to(base.device, torch.float32, copy=True).sub_(_single(base))
        # In place, and to the last bit what made + weight * step is.
        made = step.mul_(1.0 if weight is None else weight).add_(_single(made).to(base.device))
    return made


def _single(tensor):
    """Return a tensor that float32 arithmetic may take as it is; of float64 a rounded copy."""
    return tensor if tensor.element_size() <= 4 else tensor.float()
