"""The tensors in a container, before they are recognised as an embedding."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ine.errors import EmbeddingError


@dataclass(frozen=True)
class Content:
    """The tensors in a container, before they are recognised."""

    shapes: dict[str, tuple[int, ...] | None]
    """Key -> shape; None for tensors of whole or quantised numbers, which cannot be vectors."""

    get: Callable[[str], np.ndarray]
    """Key -> its numbers, in a floating type that represents them exactly."""

    name: str | None = None
    """The embedding's name, if the container has one."""

    metadata: dict[str, str] = field(default_factory=dict)


def cut_short(path: Path, reason: str) -> EmbeddingError:
    """Return the error for a truncated or inconsistent file."""
    return EmbeddingError(f"{path}: is damaged or cut short ({reason}); download or copy it again")
