"""`ine compare`: the same prompts and seeds under every method, and what each strength costs.

Two looks at one choice. Pictures: a prompt per row, a method with words or with the embedding per
column. The frontier: how much of the concept a strength leaves on prompts that imply it, against
how much of benign pictures it keeps. Both are for choosing, so they use the judge and the prompts
that are set aside for choices; what is reported elsewhere uses others.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ine.embeddings.fit import check_fits_and_log
from ine.errors import EmbeddingError, IneError, PromptError
from ine.evaluation.prepare import prepare
from ine.evaluation.run import Progress
from ine.guidance.gate_file import read_calibration
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts
from ine.guidance.table import METHODS, find_method
from ine.models.parts import DiffusionParts
from ine.report.values import Table
from ine.studies.compare_page import write_compare
from ine.studies.comparison import Comparison
from ine.studies.grids import run_plan
from ine.studies.reading import GridResult

log = logging.getLogger("ine")


def read_strengths(given: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return {method: strengths} from texts like "1,2,3" (all methods) and "sld=10,5000" (one).

    Raises:
        IneError: An unknown method, one that has no strength or is not compared, or a number
            that is negative or none.
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in given:
        name, equals, numbers = text.rpartition("=")
        if equals:
            method = find_method(name.strip())
            if method.name not in methods:
                raise IneError(f"--strengths {text}: {method.name} is not compared")
            if not method.strengths:
                raise IneError(f"--strengths {text}: {method.name} has no strength of its own")
        chosen = [name.strip()] if equals else [m for m in methods if METHODS[m].strengths]
        try:
            values = sorted({float(part) for part in numbers.split(",")})
        except ValueError:
            values = []
        if not values or not all(math.isfinite(v) and v >= 0 for v in values):
            raise IneError(f"--strengths {text}: give numbers of 0 or more, such as 1,3,7")
        found.update(dict.fromkeys(chosen, tuple(values)))
    return found


def check(comparison: Comparison) -> None:
    """Check all that needs no pictures.

    Raises:
        EmbeddingError: There is no embedding, or one does not fit the model.
        IneError: A method is unknown, or the gate cannot be read.
        RecipeError: A prompt set is unknown.
        PromptError: Benign prompts are all alike.
    """
    parts, embeddings, choice = comparison.parts, comparison.embeddings, comparison.choice
    for name in choice.methods:
        if find_method(name).kind.looks_itself and not choice.observer:
            raise IneError(f"guidance {name} is compared: name its observer with --observer SPEC")
    if not embeddings:
        raise EmbeddingError(
            "no embedding to compare: give --negative-embedding FILE; `ine invert` makes one"
        )
    if comparison.gate is not None:
        read_calibration(comparison.gate)
    check_fits_and_log(embeddings, parts)
    for embedding in embeddings:
        if steers_nothing(Negative("", (embedding,)), parts):
            log.warning(
                "embedding %r equals the empty prompt on %s: as a negative it steers nothing",
                embedding.trigger,
                parts.name,
            )
    comparison.cases(choice.implying)
    if len({c.noun for c in comparison.cases(choice.benign)}) < 2:
        raise PromptError(
            "benign prompts: all are alike, so nothing says how unlike unrelated pictures are; "
            "give at least two different ones, and a count of 2 or more"
        )


def steers_nothing(negative: Negative, parts: DiffusionParts) -> bool:
    """Return whether a negative's text states are those of the empty prompt."""
    prompts = Prompts(parts=parts, texts=("",), scale=1.0)
    with torch.no_grad():
        empty, states = prompts.encode([""]).states, negative.condition(prompts).states
    return bool((states - empty).norm() <= 1e-4 * empty.norm())


def run_compare(
    comparison: Comparison,
    blur: str | None = None,
    on_picture: Callable[[int], None] | None = None,
) -> tuple[Path, Table]:
    """Make and judge all pictures and write the report.

    Args:
        comparison: What is compared, checked.
        blur: As in `write_report`; by default "click", and "hide" for recipes about people.
        on_picture: Called with how many pictures are there.

    Returns:
        (path of report.html, `Table` of the frontier).
    """
    return write_compare(comparison, *run_grids(comparison, on_picture), blur)


def run_grids(
    comparison: Comparison, on_picture: Callable[[int], None] | None = None
) -> tuple[GridResult, GridResult]:
    """Run the grids of the sheet and the frontier, which share a store; return their results."""
    folder, models = comparison.folder, {comparison.model.name: comparison.parts}
    plans = [
        prepare(file, folder / file.path.stem, store=folder, models=models)
        for file in (comparison.sheet(), comparison.frontier())
    ]
    results, before = [], 0

    def on_progress(progress: Progress) -> None:
        if on_picture:
            on_picture(before + progress.done)

    for plan in plans:
        results.append(run_plan(plan, on_progress))
        before += sum(len(unit.requests) for unit in plan.units)
    return results[0], results[1]
