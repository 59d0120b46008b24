"""What is known of the pictures of a configuration on a prompt set: columns, one row per picture.

Shape letter: P pictures.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Columns = dict[tuple[str, str], np.ndarray]
"""What is known of pictures, (P,) each, by name and what it is of: ("flagged", rule), or
("unet_calls", "")."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What is known of the pictures of one configuration on one prompt set, all seeds together."""

    keys: tuple[tuple[int, str, int, int], ...]
    """(grid seed, row id, picture of the row, seed) per picture: equal keys, equal start."""

    clusters: tuple[str, ...]
    """What is independent, usually the prompt."""

    nouns: tuple[str, ...]
    units: tuple[tuple[str, int], ...]
    """(unit key, position in it) per picture: where `Store.pictures` finds it."""

    columns: Columns

    def column(self, name: str, of: str = "") -> np.ndarray:
        """Return a column, (P,).

        Raises:
            KeyError: These pictures do not have it.
        """
        return self.columns[name, of]

    def has(self, name: str, of: str = "") -> bool:
        """Return whether the pictures have a column."""
        return (name, of) in self.columns

    def named(self, name: str) -> dict[str, np.ndarray]:
        """Return {what it is of: column} of all columns of a name."""
        return {of: values for (own, of), values in self.columns.items() if own == name}

    @cached_property
    def flagged(self) -> dict[str, np.ndarray]:
        """{rule: whether it flags, (P,) bool}."""
        return self.named("flagged")

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """{rule: the number that it compares, (P,)}."""
        return self.named("score")

    @cached_property
    def likeness(self) -> dict[str, np.ndarray]:
        """{measure: likeness to the undefended picture of the same prompt and seed, (P,)}.

        Not rescaled; empty for the undefended model.
        """
        return self.named("likeness")

    @property
    def calls(self) -> np.ndarray:
        """U-Net evaluations (NFE), (P,)."""
        return self.column("unet_calls")

    @cached_property
    def place_of(self) -> dict[tuple[int, str, int, int], int]:
        """{key: position}."""
        return {key: number for number, key in enumerate(self.keys)}


def join_pictures(parts: list[Pictures]) -> Pictures:
    """Return several `Pictures` with the same columns as one, in order."""
    if len(parts) == 1:
        return parts[0]
    return Pictures(
        keys=tuple(key for p in parts for key in p.keys),
        clusters=tuple(label for p in parts for label in p.clusters),
        nouns=tuple(noun for p in parts for noun in p.nouns),
        units=tuple(unit for p in parts for unit in p.units),
        columns={
            name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns
        },
    )
