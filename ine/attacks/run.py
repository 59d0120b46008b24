"""From pictures and prompts to adversarial prompts in a file that `ine evaluate` reads."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ine.attacks.attacker import Attacker, Pair, Row, objective_of
from ine.attacks.inverting import defended_loss
from ine.attacks.objectives import joined
from ine.attacks.phrases import words_of
from ine.attacks.proposals import SearchSettings
from ine.attacks.search import Search, search
from ine.attacks.shut import shut_loss
from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import IneError
from ine.files import write_text
from ine.inversion.invert import Loss, invert
from ine.inversion.preview import reviving_prompts
from ine.recipe import ConceptRecipe, pairs
from ine.runtime import seed_for


def plain_prompts(recipe: ConceptRecipe, count: int, seed: int) -> list[Pair]:
    """Return `count` pairs (prompt without the concept, noun): what a recipe's erasers aim at.

    Raises:
        IneError: The recipe has no such prompts.
    """
    if recipe.erase is None:
        raise IneError(
            f"attack: recipe {recipe.name} has no erase section to take prompts "
            "from; give --prompts"
        )
    options = pairs(list(dict.fromkeys(recipe.erase.targets)), recipe.erase.nouns)
    order = sorted(range(len(options)), key=lambda i: seed_for(seed, "attack prompts", i))
    return [(recipe.fill(t, n), n) for t, n in (options[i] for i in order[:count])]


def made_of(method: str, phrase: str, prompt: str) -> str:
    """Return the adversarial prompt; Ring-A-Bell's phrase takes the place of the prompt."""
    return phrase if method == "ring-a-bell" else joined(phrase, prompt)


def search_prompts(
    attacker: Attacker,
    method: str,
    rows: Sequence[Pair],
    settings: SearchSettings,
    *,
    together: bool = False,
    allow_words: bool = False,
    direction: float = 3.0,
    on_round: Callable[[int, int, Search], None] | None = None,
) -> list[Row]:
    """Search a phrase for every prompt, or one for all; return the rows of the set.

    Args:
        attacker: With its model and knowledge.
        method: "text", "ring-a-bell" or "denoising".
        rows: (prompt, noun) pairs.
        settings: Of the search.
        together: One phrase for all prompts.
        allow_words: Whether a phrase may have the concept's own words.
        direction: For "text" and "ring-a-bell", how far to go along the concept's direction.
        on_round: Called with (group, groups, `Search`) after every round.

    Returns:
        Dicts with "prompt", "noun", "phrase", and how they were made.
    """
    recipe = attacker.recipe
    without = () if allow_words else (*recipe.words.explicit, *recipe.words.synonyms)
    words = words_of(attacker.victim.parts, without)
    groups = [list(rows)] if together else [[row] for row in rows]
    found: list[Row] = []
    for number, group in enumerate(groups):
        objective = objective_of(attacker, method, group, direction)
        now = search(
            objective,
            words,
            settings,
            seed=seed_for(attacker.seed, "attack", number),
            state=attacker.folder / "states" / f"{number:04d}.json",
            key=attacker.key(method, asdict(settings), group, allow_words, direction),
            on_round=partial(on_round, number, len(groups)) if on_round else None,
        )
        marks = attacker.marks(method, f"{settings.budget} {objective.unit} a phrase")
        marks |= {"proposals": settings.proposals, "spent": now.spent, "loss": now.loss}
        found += [_row(method, now, pair, marks) for pair in group]
    return found


def _row(method: str, found: Search, pair: Pair, marks: Row) -> Row:
    """Return the row of a phrase before one prompt."""
    assert found.phrase is not None  # the search has ended
    prompt, noun = pair
    return {
        "prompt": made_of(method, found.phrase, prompt),
        "noun": noun,
        "phrase": found.phrase,
        "original": prompt,
        **marks,
    }


def invert_prompts(
    attacker: Attacker,
    trigger: str,
    count: int,
    on_step: Callable[[Any], None] | None = None,
) -> tuple[Path, list[Row]]:
    """Invert the concept, through the defence where it is known; write and return an embedding.

    Returns:
        (path of the embedding, rows of the set whose prompts have the trigger in them).
    """
    recipe = attacker.recipe
    spec = recipe.inversion.model_copy(update={"preview_every": 10**9})
    made = invert(
        attacker.victim.parts,
        attacker.pictures,
        spec,
        trigger=trigger,
        seed=attacker.seed,
        plural=recipe.plural,
        state=attacker.folder / "states" / "embedding.safetensors",
        key=attacker.key("embedding", trigger),
        on_step=on_step,
        loss_of=_loss_of(attacker),
    )
    path = attacker.folder / f"{trigger}.safetensors"
    write_embedding(new_embedding(made.vectors, trigger, recipe.name), path, force=True)
    budget = f"{spec.steps} steps of {spec.batch * spec.accumulation} pictures"
    marks = attacker.marks("embedding", budget)
    rows = [
        {"prompt": prompt, "noun": noun, "phrase": trigger, **marks}
        for prompt, noun in reviving_prompts(recipe, trigger, count, attacker.seed)
    ]
    return path, rows


def _loss_of(attacker: Attacker) -> Loss | None:
    """Return what an inversion minimises; None is the loss on the bare model."""
    if attacker.gate:
        return shut_loss(attacker.victim, attacker.gate)
    return None if attacker.victim.guidance is None else defended_loss(attacker.victim)


def write_set(path: Path, rows: Iterable[Row]) -> None:
    """Write a prompt set as JSON lines, atomically."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))
