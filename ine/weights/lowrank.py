"""A low-rank difference of a weight, as LoRA files hold it, and its size once multiplied out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """W' = W + scale * up down (LoRA, Hu et al. 2021, eq. 3), multiplied out in float32.

    A linear layer has up [out, r] and down [r, in], a convolution up [out, r, 1, 1] and down
    [r, in, k, k]; with `mid` [r, r, k, k] (Tucker form) down is [r, in, 1, 1].
    """

    up: torch.Tensor
    down: torch.Tensor
    mid: torch.Tensor | None = None
    scale: float = 1.0
    """alpha / rank; 1 where a file states no alpha."""

    @property
    def rank(self) -> int:
        """Number of columns of `up`."""
        return self.down.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in the file."""
        return self.up.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape of the difference, [out, in] or [out, in, k, k]."""
        kernel = self.down if self.mid is None else self.mid
        return torch.Size([self.up.shape[0], self.down.shape[1], *kernel.shape[2:]])

    def numel(self) -> int:
        """Return the number of parameters in the file."""
        return sum(t.numel() for t in (self.up, self.down, self.mid) if t is not None)

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether it can be added to a weight of this shape; 1 x 1 kernels are ignored."""
        return without_kernel(self.shape) == without_kernel(shape)

    def difference(self, shape: Sequence[int] | None = None) -> torch.Tensor:
        """Return scale * up down as a float32 tensor, in the shape of the weight it belongs to."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        if self.mid is None:
            made = up @ down
        else:
            made = torch.einsum("oa,abkl,bi->oikl", up, self.mid.float(), down)
        return (self.scale * made).reshape(self.shape if shape is None else shape)


def without_kernel(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a weight's shape without a kernel of 1 x 1."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


Value: TypeAlias = torch.Tensor | LowRank
"""What a file gives for one tensor of a model: the tensor, or a difference to add to it."""
