"""One search for adversarial phrases, whatever is minimised and however phrases are proposed.

A population of phrases of K tokens: every round proposes children, compares all on the same new
views, and keeps the best. Proposals are by gradient (Zou et al. 2023, arXiv 2307.15043, algorithm
1: tokens whose vectors lie where the loss falls) or by crossover and mutation (Ring-A-Bell). The
budget is a number of evaluations: the search stops when the costliest round so far plus the final
comparison would exceed it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ine.attacks.objectives import Objective
from ine.attacks.phrases import Places, Words
from ine.attacks.proposals import PROPOSALS, SearchSettings, draw_number
from ine.errors import IneError, OutputError
from ine.files import write_json
from ine.runtime import generator_for


@dataclass(frozen=True, kw_only=True)
class Search:
    """The state of a search, and in the end its result."""

    round: int = 0
    spent: int = 0
    dearest: int = 0
    """Cost of the costliest round so far."""

    population: tuple[Places, ...] = ()
    """Phrases, best first."""

    recent: tuple[Places, ...] = ()
    """The best of the last rounds, newest first, each once."""

    trace: tuple[tuple[int, float], ...] = ()
    """(spent, loss of the best) after every round."""

    phrase: str | None = None
    """The phrase found; None while the search runs."""

    loss: float | None = None
    """Its loss on the final views."""


def search(
    objective: Objective,
    words: Words,
    settings: SearchSettings,
    *,
    seed: int = 0,
    state: Path | None = None,
    key: str = "",
    on_round: Callable[[Search], None] | None = None,
) -> Search:
    """Return the finished `Search` for one phrase.

    Args:
        objective: The loss to minimise.
        words: From `words_of`.
        settings: Of the search.
        seed: Of all randomness.
        state: File to resume from and to save to; the result is the same either way.
        key: Identity of the search; a state with another key is refused.
        on_round: Called after every round.

    Raises:
        IneError: The budget is not enough for one round, or the state belongs to another search.
    """
    now = (read_search(state, key) if state else None) or _first(words, settings, seed)
    while now.phrase is None:
        now, final = _round(objective, words, settings, now, seed)
        if now.spent + now.dearest + final > settings.budget:
            now = _chosen(objective, words, settings, now, seed)
        if state:
            write_json(state, {"key": key, **asdict(now)})
        if on_round:
            on_round(now)
    return now


def _first(words: Words, settings: SearchSettings, seed: int) -> Search:
    """Return a search with random phrases."""
    drawing = generator_for(seed, "phrase", "start")
    _, kept = PROPOSALS[settings.proposals]
    return Search(population=tuple(_phrase(words, settings, drawing) for _ in range(kept)))


def _phrase(words: Words, settings: SearchSettings, generator: torch.Generator) -> Places:
    return tuple(draw_number(len(words.ids), generator) for _ in range(settings.tokens))


def _round(
    objective: Objective, words: Words, settings: SearchSettings, now: Search, seed: int
) -> tuple[Search, int]:
    """Return (the search after one more round, the cost of the final comparison).

    Raises:
        IneError: The budget is not enough for the first round.
    """
    propose, kept = PROPOSALS[settings.proposals]
    generator = generator_for(seed, "phrase", now.round)
    views, drawn = objective.draw(generator, settings.views)
    children, proposed = propose(objective, words, now.population, views, settings, generator)
    tried = list(dict.fromkeys((*now.population, *children)))
    losses, compared = objective.losses([words.text(p) for p in tried], views)
    cost = drawn + proposed + compared
    # Duplicates are compared once, so a later round can cost more: as if there were none.
    each = compared / len(tried) / len(views)
    full = drawn + proposed + math.ceil(each * (kept + settings.children) * len(views))
    final = math.ceil((each * settings.finalists + drawn / len(views)) * settings.final_views)
    if now.spent + cost + final > settings.budget and not now.round:
        raise IneError(
            f"search: one round costs {cost} {objective.unit} and the choice in the end "
            f"{final}, more than the budget of {settings.budget}; give a larger one, or fewer "
            "children or views"
        )
    order = losses.argsort(stable=True).tolist()
    best = tried[order[0]]
    found = replace(
        now,
        round=now.round + 1,
        spent=now.spent + cost,
        dearest=max(now.dearest, full),
        population=tuple(tried[i] for i in order[:kept]),
        recent=tuple(dict.fromkeys((best, *now.recent)))[: settings.finalists],
        trace=(*now.trace, (now.spent + cost, round(float(losses[order[0]]), 6))),
    )
    return found, final


def _chosen(
    objective: Objective, words: Words, settings: SearchSettings, now: Search, seed: int
) -> Search:
    """Return the search with the finalist that is best on views that no round used."""
    drawing = generator_for(seed, "phrase", "final")
    views, looked = objective.draw(drawing, settings.final_views)
    texts = [words.text(places) for places in now.recent]
    losses, cost = objective.losses(texts, views)
    best = int(losses.argmin())
    return replace(
        now, spent=now.spent + cost + looked, phrase=texts[best], loss=round(float(losses[best]), 6)
    )


def read_search(path: Path | str, key: str) -> Search | None:
    """Return the `Search` of a state file, or None if the file does not exist.

    Raises:
        IneError: The file is broken or belongs to another search.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        own = data.pop("key")
        found = Search(
            **{
                **data,
                "population": tuple(map(tuple, data["population"])),
                "recent": tuple(map(tuple, data["recent"])),
                "trace": tuple(map(tuple, data["trace"])),
            }
        )
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error})") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise IneError(
            f"{path}: is not a state of `ine attack`, or is broken; delete it to start again"
        ) from error
    if own != key:
        raise IneError(
            f"{path}: belongs to an attack with other settings; give another --out, or delete it"
        )
    return found
