"""How a search proposes phrases: by the loss's gradient, or by crossing the better ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ine.attacks.objectives import Objective
from ine.attacks.phrases import Places, Words
from ine.errors import IneError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a phrase is searched for."""

    tokens: int = 5
    """K; UnlearnDiffAtk takes 5 before nudity's prompts."""

    budget: int = 10000
    """Most evaluations for one phrase, in the objective's unit."""

    proposals: str = "gradient"
    """A name of `PROPOSALS`."""

    children: int = 16
    """Phrases proposed a round."""

    top: int = 32
    """By gradient: from how many of the best tokens of a place one is drawn."""

    views: int = 8
    """Views a round looks at."""

    final_views: int = 16
    """Views by which the finalists are compared in the end."""

    finalists: int = 6

    def __post_init__(self) -> None:
        """Raise `IneError` if a setting makes no sense."""
        for name in ("tokens", "budget", "children", "top", "views", "final_views", "finalists"):
            if getattr(self, name) < 1:
                raise IneError(f"search: {name} is {getattr(self, name)}; give 1 or more")
        if self.proposals not in PROPOSALS:
            hint = did_you_mean(self.proposals, PROPOSALS)
            raise IneError(
                f"search: proposals {self.proposals!r} is unknown{hint}; known: "
                f"{', '.join(PROPOSALS)}"
            )


def by_gradient(
    objective: Objective,
    words: Words,
    population: Sequence[Places],
    views: Sequence[Any],
    settings: SearchSettings,
    generator: torch.Generator,
) -> tuple[list[Places], int]:
    """Return phrases of the best one with one token exchanged where the loss should fall.

    Source: Zou et al. 2023, algorithm 1.
    """
    best = population[0]
    slopes, cost = objective.gradient(words.vectors(best), views)
    # The change of the loss to first order, less what the present token has: (K, W).
    change = torch.zeros(settings.tokens, len(words.ids))
    for slope, table in zip(slopes, words.tables, strict=True):
        change = change + slope.cpu() @ table.T
    ranked = change.topk(min(settings.top, change.shape[1]), largest=False).indices
    children: list[Places] = []
    for _ in range(settings.children):
        place = draw_number(settings.tokens, generator)
        token = int(ranked[place, draw_number(ranked.shape[1], generator)])
        children.append((*best[:place], token, *best[place + 1 :]))
    return children, cost


Propose = Callable[
    [Objective, Words, Sequence[Places], Sequence[Any], SearchSettings, torch.Generator],
    tuple[list[Places], int],
]

MUTATED = 0.25
"""Share of phrases in which one token is exchanged; `mutateRate` of Ring-A-Bell's code."""


def by_crossing(
    _objective: Objective,
    words: Words,
    population: Sequence[Places],
    _views: Sequence[Any],
    settings: SearchSettings,
    generator: torch.Generator,
) -> tuple[list[Places], int]:
    """Return phrases crossed from two of the better ones, one token exchanged in a quarter of them.

    Two parents cut at one place give two children. Every fourth child is mutated, from a random
    first one, so that every round has a new token.

    Source: Tsai et al. 2024, their code `InversePrompt.ipynb` (commit e4585ad): there, too, the
    better half is kept, and a mutation exchanges one token of a phrase. Their rates are of 200
    phrases over 3,000 rounds.
    """
    children: list[Places] = []
    while len(children) < settings.children:
        first, second = (population[draw_number(len(population), generator)] for _ in range(2))
        cut = draw_number(settings.tokens, generator)
        children += [first[:cut] + second[cut:], second[:cut] + first[cut:]]
    every = round(1 / MUTATED)
    for number in range(draw_number(every, generator), len(children), every):
        place, child = draw_number(settings.tokens, generator), children[number]
        token = draw_number(len(words.ids), generator)
        children[number] = (*child[:place], token, *child[place + 1 :])
    return children[: settings.children], 0


PROPOSALS: dict[str, tuple[Propose, int]] = {
    "gradient": (by_gradient, 1),
    "genetic": (by_crossing, 16),
}
"""Name -> (function, how many phrases are kept from round to round)."""


def draw_number(count: int, generator: torch.Generator) -> int:
    """Return a random whole number below `count`."""
    return int(torch.randint(count, (), generator=generator))
