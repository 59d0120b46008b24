"""One search for adversarial phrases, whatever is minimised and however phrases are proposed.

A population of phrases of K tokens; every round proposes children, compares all on the same fresh
views, and keeps the best. Proposals are by gradient (Zou et al. 2023, arXiv 2307.15043, algorithm
1: tokens whose vectors lie where the loss falls) or by crossing and changing (Ring-A-Bell). The
budget is a number of evaluations: the search ends where another round, at the dearest so far,
and the choice among the finalists would go beyond it.

Tokens are whole words of letters, so that a phrase is read back as the tokens that were tried.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ine.errors import IneError, OutputError, did_you_mean
from ine.files import write_json
from ine.runtime import generator_for

WORD = re.compile(r"[a-z]{2,}")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a phrase is searched for."""

    tokens: int = 5
    """K; UnlearnDiffAtk takes 5 before nudity's prompts."""

    budget: int = 10000
    """Evaluations a phrase may cost, in the objective's unit."""

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

    def __post_init__(self):
        """Raise `IneError` where a setting makes no sense."""
        for name in ("tokens", "budget", "children", "top", "views", "final_views", "finalists"):
            if getattr(self, name) < 1:
                raise IneError(f"search: {name} is {getattr(self, name)}; give 1 or more")
        if self.proposals not in PROPOSALS:
            hint = did_you_mean(self.proposals, PROPOSALS)
            raise IneError(
                f"search: proposals {self.proposals!r} is unknown{hint}; known: "
                f"{', '.join(PROPOSALS)}"
            )


@dataclass(frozen=True, eq=False)
class Words:
    """The tokens that a phrase may have."""

    tokenizer: object
    ids: torch.Tensor
    """Ascending, (W,) int64."""

    tables: tuple[torch.Tensor, ...]
    """Vectors of those tokens, one (W, D) tensor per text encoder."""

    def text(self, places):
        """Return a phrase as text; `places` are positions in `ids`."""
        return self.tokenizer.decode(self.ids[list(places)].tolist()).strip()

    def vectors(self, places):
        """Return a phrase's token vectors, one (K, D) tensor per text encoder."""
        return [table[list(places)] for table in self.tables]


def words_of(parts, without=()):
    """Return the `Words` of a model: tokens that are whole words of at least two letters.

    Args:
        parts: A `DiffusionParts`; several tokenizers have to agree on the tokens.
        without: Texts whose words an attacker does without, such as the concept's own names,
            which a list of forbidden words would catch.
    """
    tokenizer = parts.tokenizers[0]
    banned = {word for text in without for word in WORD.findall(text.lower())}
    vocabularies = [t.get_vocab() for t in parts.tokenizers]
    found = []
    for token, number in vocabularies[0].items():
        word = token.removesuffix("</w>")
        fits = token.endswith("</w>") and WORD.fullmatch(word) and word not in banned
        if fits and all(v.get(token) == number for v in vocabularies):
            found.append(number)
    if len(found) < 2:
        raise IneError(f"{parts.name}: its tokenizer has no whole words to search among")
    ids = torch.tensor(sorted(found))
    tables = tuple(
        encoder.get_input_embeddings().weight.detach()[ids.to(encoder.device)].float().cpu()
        for encoder in parts.text_encoders
    )
    return Words(tokenizer, ids, tables)


# --- proposals: (objective, words, population, views, settings, generator) -> (children, cost)


def by_gradient(objective, words, population, views, settings, generator):
    """Return phrases of the best one with one token exchanged where the loss should fall.

    Source: Zou et al. 2023, algorithm 1.
    """
    best = population[0]
    slopes, cost = objective.gradient(words.vectors(best), views)
    # The change of the loss to first order, less what the present token has: (K, W).
    change = sum(slope.cpu() @ table.T for slope, table in zip(slopes, words.tables, strict=True))
    ranked = change.topk(min(settings.top, change.shape[1]), largest=False).indices
    children = []
    for _ in range(settings.children):
        place = _draw(settings.tokens, generator)
        token = int(ranked[place, _draw(ranked.shape[1], generator)])
        children.append((*best[:place], token, *best[place + 1 :]))
    return children, cost


def by_crossing(_objective, words, population, _views, settings, generator):
    """Return phrases crossed from two of the better ones, one token in four changed at random.

    Source: Tsai et al. 2024, section 4.1 (crossover and mutation rates of their code).
    """
    children = []
    for _ in range(settings.children):
        first, second = (population[_draw(len(population), generator)] for _ in range(2))
        cut = _draw(settings.tokens + 1, generator)
        child = list(first[:cut] + second[cut:])
        for place in range(settings.tokens):
            if float(torch.rand((), generator=generator)) < 0.25:
                child[place] = _draw(len(words.ids), generator)
        children.append(tuple(child))
    return children, 0


PROPOSALS = {"gradient": (by_gradient, 1), "genetic": (by_crossing, 16)}
"""Name -> (function, how many phrases are kept from round to round)."""


def _draw(count, generator):
    return int(torch.randint(count, (), generator=generator))


# --- the loop


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where a search stands, or what it found."""

    round: int = 0
    spent: int = 0
    dearest: int = 0
    """What a round may cost, by the rounds so far."""

    population: tuple[tuple[int, ...], ...] = ()
    """Phrases, best first, as positions in the words."""

    recent: tuple[tuple[int, ...], ...] = ()
    """The best of the last rounds, newest first, each once."""

    trace: tuple[tuple[int, float], ...] = ()
    """(spent, loss of the best) after every round."""

    phrase: str | None = None
    """What was found in the end."""

    loss: float | None = None
    """Its loss on the final views."""


def search(
    objective,
    words,
    settings: SearchSettings,
    *,
    seed: int = 0,
    state: Path | None = None,
    key: str = "",
    on_round: Callable[[Search], None] | None = None,
):
    """Return the finished `Search` for one phrase.

    Args:
        objective: An `Objective`.
        words: From `words_of`.
        settings: `SearchSettings`.
        seed: Where all randomness comes from.
        state: File to resume from and to save to; what is found is the same either way.
        key: What the search depends on; a state with another key is refused.
        on_round: Called after every round.

    Raises:
        IneError: The budget is not enough for one round, or the state belongs to another search.
    """
    propose, kept = PROPOSALS[settings.proposals]
    now = read_search(state, key) if state else None
    if now is None:
        drawing = generator_for(seed, "phrase", "start")
        first = tuple(
            tuple(_draw(len(words.ids), drawing) for _ in range(settings.tokens))
            for _ in range(kept)
        )
        now = Search(population=first)
    while now.phrase is None:
        generator = generator_for(seed, "phrase", now.round)
        views, looked = objective.draw(generator, settings.views)
        children, cost = propose(objective, words, now.population, views, settings, generator)
        cost += looked
        tried = list(dict.fromkeys((*now.population, *children)))
        losses, more = objective.losses([words.text(p) for p in tried], views)
        cost += more
        each = more / len(tried) / len(views)
        full = cost - more + math.ceil(each * (kept + settings.children) * len(views))
        final = (each * settings.finalists + looked / len(views)) * settings.final_views
        final = math.ceil(final)
        if now.spent + cost + final > settings.budget and not now.round:
            raise IneError(
                f"search: one round costs {cost} {objective.unit} and the choice in the end "
                f"{final}, more than the budget of {settings.budget}; give a larger one, or fewer "
                "children or views"
            )
        order = losses.argsort(stable=True).tolist()
        best = tried[order[0]]
        now = replace(
            now,
            round=now.round + 1,
            spent=now.spent + cost,
            dearest=max(now.dearest, full),
            population=tuple(tried[i] for i in order[:kept]),
            recent=tuple(dict.fromkeys((best, *now.recent)))[: settings.finalists],
            trace=(*now.trace, (now.spent + cost, round(float(losses[order[0]]), 6))),
        )
        if now.spent + now.dearest + final > settings.budget:
            now = _chosen(objective, words, settings, now, seed)
        if state:
            write_json(state, {"key": key, **asdict(now)})
        if on_round:
            on_round(now)
    return now


def _chosen(objective, words, settings, now, seed):
    """Return the search with the finalist that is best on views none was chosen by."""
    drawing = generator_for(seed, "phrase", "final")
    views, looked = objective.draw(drawing, settings.final_views)
    texts = [words.text(places) for places in now.recent]
    losses, cost = objective.losses(texts, views)
    best = int(losses.argmin())
    return replace(
        now, spent=now.spent + cost + looked, phrase=texts[best], loss=round(float(losses[best]), 6)
    )


def read_search(path, key):
    """Return the `Search` of a state file, or None if there is none.

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
            f"{path}: is not a state of `ine attack`, or is broken; delete it to begin anew"
        ) from error
    if own != key:
        raise IneError(
            f"{path}: belongs to an attack with other settings; give another --out, or delete it"
        )
    return found
