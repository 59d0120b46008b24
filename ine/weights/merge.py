"""Apply values to a module: replace tensors, add to them, or move them by a weighted difference."""

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from ine.weights.fit import all_finite, same_values
from ine.weights.lowrank import LowRank, Value

Step = tuple[Value, float | None]
"""(value, weight). A tensor without a weight replaces the tensor of the base; with one it adds
weight * (tensor - base). A `LowRank` adds weight * difference; its weight is 1 if not given."""


@torch.no_grad()
def apply_to_module(
    module: nn.Module,
    steps: Mapping[str, Sequence[Step]],
    keep: bool = True,
    compare: bool = False,
) -> tuple[nn.Module, list[str]]:
    """Return a frozen module with values applied, and the names of the tensors that differ.

    Tensors are computed one after the other, in float32, and rounded once.

    Args:
        module: The base.
        steps: {name in its state dict: what is applied to it, in order}.
        keep: Leave the base as it is and return a copy, which shares the tensors that stay;
            otherwise the base itself takes the values, and nothing is copied.
        compare: Whether to find the values that differ from the base's by more than rounding.

    Returns:
        (the module, names of the tensors that differ).

    Raises:
        OverflowError: A sum leaves the range of the base's dtype; the message is the tensor's
            name. A base that is not kept has then only some of the new values.
    """
    made = shared_copy(module, steps) if keep else module
    state, base = made.state_dict(), module.state_dict()
    differing = []
    for name, ordered in steps.items():
        value = apply_to_tensor(base[name], ordered)
        if compare:
            value = value.to(base[name].dtype)
            if not all_finite(value):
                raise OverflowError(name)
            if not same_values(value.cpu(), base[name].cpu()):
                differing.append(name)
        state[name].copy_(value)
    return made, differing


def shared_copy(module: nn.Module, names: Collection[str] = ()) -> nn.Module:
    """Return a frozen copy of a module in which only the named tensors have new memory.

    The other tensors are shared with the module.
    """
    # deepcopy skips objects that are in the memo.
    memo = {
        id(p): nn.Parameter(p.data if name not in names else torch.empty_like(p), False)
        for name, p in module.named_parameters()
    }
    return copy.deepcopy(module, memo).eval()


def apply_to_tensor(base: torch.Tensor, ordered: Sequence[Step]) -> torch.Tensor:
    """Return one tensor of a base with all steps applied, see `Step`.

    A tensor that replaces is returned as it is, in its own dtype; sums are float32 and are made
    in the memory of one of their terms.
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
        # In place; equal to made + weight * step to the last bit.
        made = step.mul_(1.0 if weight is None else weight).add_(_single(made).to(base.device))
    return made


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of at most 32 bits per value; float64 is rounded to float32."""
    return tensor if tensor.element_size() <= 4 else tensor.float()
