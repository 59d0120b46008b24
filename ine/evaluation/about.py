"""What was run and with what: the content of `about.json`."""

from collections.abc import Iterable, Mapping
from typing import NotRequired, TypedDict

from ine.evaluation.models import ModelFacts
from ine.evaluation.plan import Plan
from ine.evaluation.prompt_sets import SetOfPrompts
from ine.runtime import library_versions


class SetFacts(TypedDict):
    """What is known of a prompt set."""

    source: str
    role: str
    expects: str
    sha256: str
    rows: int
    read: int
    refused: int
    refused_rows: list[int]
    refused_sha256: str
    duplicates: int
    pictures: int


class ModelAbout(TypedDict):
    """What is known of a model."""

    digest: str
    name: str
    sampler: str


class RuleFacts(TypedDict):
    """What is known of a rule."""

    detector: str
    source: str
    note: NotRequired[str]


class ConceptFacts(TypedDict):
    """What is known of the concept."""

    name: str
    hash: str
    people: bool


class About(TypedDict):
    """What was run and with what, the content of `about.json`.

    Keys that earlier versions did not write are not required.
    """

    grid: str
    digest: str
    concept: NotRequired[ConceptFacts | None]
    limit: int | None
    only: list[str]
    models: dict[str, ModelAbout]
    sets: dict[str, SetFacts]
    seeds: list[int]
    rules: dict[str, RuleFacts]
    judges: NotRequired[dict[str, str | None]]
    features: NotRequired[str]
    pictures_made_by: list[str]
    numbers: NotRequired[dict[str, int]]
    scored_by: str


def about_of(plan: Plan, made: Iterable[str], numbers: Mapping[str, int]) -> About:
    """Return what is needed to say what was run, and to run it again.

    Args:
        plan: The grid.
        made: What made its pictures, in words.
        numbers: How many pictures there are, and how many are blank or were made again.
    """
    grid, recipe = plan.file.grid, plan.file.recipe
    return {
        "grid": grid.name,
        "digest": plan.file.digest,
        "concept": {"name": recipe.name, "hash": recipe.hash, "people": recipe.people}
        if recipe
        else None,
        "limit": plan.limit,
        "only": list(plan.only),
        "models": {
            name: _model_facts(facts, repr(plan.sampler(name)))
            for name, facts in plan.facts.items()
        },
        "sets": {name: _set_facts(prompts) for name, prompts in plan.sets.items()},
        "seeds": list(grid.seeds),
        "rules": {
            r.name: {"detector": r.detector, "source": r.source, "note": r.notes}
            for r in plan.file.rules
        },
        "judges": grid.judges.model_dump(),
        "features": plan.features_by,
        "pictures_made_by": sorted(made),
        "numbers": dict(numbers),
        "scored_by": library_versions(),
    }


def _model_facts(facts: ModelFacts | None, sampler: str) -> ModelAbout:
    assert facts is not None, "only a dry run goes on without a model"
    return {"digest": facts.digest, "name": facts.name, "sampler": sampler}


def _set_facts(prompts: SetOfPrompts) -> SetFacts:
    found = prompts.found
    count = prompts.count
    assert found is not None, "only a dry run goes on without a prompt file"
    assert count is not None, "rows that were read are counted"
    return {
        "source": prompts.spec.source or "given in the grid",
        "role": prompts.spec.role,
        "expects": prompts.spec.expects,
        "sha256": found.digest,
        "rows": len(found.rows),
        "read": found.read,
        "refused": found.refused,
        "refused_rows": list(found.refused_rows),
        "refused_sha256": found.refused_digest,
        "duplicates": found.duplicates,
        "pictures": count,
    }
