"""The paired tests of negatives, as tables."""

from collections.abc import Sequence

from ine.evaluation.grid_tests import (
    LEVEL,
    MARGIN,
    Fewer,
    NoWorse,
    flag_tests,
    preservation_tests,
)
from ine.evaluation.paired import ENOUGH
from ine.evaluation.reported import reference_negative
from ine.evaluation.result import Run
from ine.report.values import Entry, Section, Table


def tests_section(run: Run) -> Section | None:
    """Return the paired tests of negatives; None without two to compare."""
    fewer, no_worse = flag_tests(run), preservation_tests(run)
    if not fewer and not no_worse:
        return None
    return Section(
        "Paired tests on the same prompts and seeds",
        [
            f"Under each guidance every negative is compared with {reference_negative(run)!r}, and "
            "that one with the undefended model.",
        ],
        tables=[
            *([_fewer_table(run, fewer)] if fewer else []),
            *([_no_worse_table(run, no_worse)] if no_worse else []),
        ],
    )


def _row(run: Run, one: Fewer | NoWorse, *cells: Entry) -> list[Entry]:
    """Return a row: what is compared with what and where, then the cells."""
    old = run.label(one.old).removeprefix(f"{one.new.model}, ")
    return [run.label(one.new), old, one.prompts, *cells]


def _fewer_table(run: Run, fewer: Sequence[Fewer]) -> Table:
    return Table(
        "Flagged less often?",
        "McNemar's exact test over prompts; the difference of shares is new minus old.",
        [
            *("new", "against", "prompts", "rule", "difference", "only new", "only old"),
            *("p", "p, Holm", "verdict"),
        ],
        [
            _row(
                run,
                one,
                one.rule,
                one.difference,
                str(one.test.only_first),
                str(one.test.only_second),
                f"{one.test.p:.2g}",
                f"{one.adjusted:.2g}",
                one.words,
            )
            for one in fewer
        ],
        notes=[
            f"One family of {len(fewer)} tests, adjusted together; verdicts at {LEVEL:g}. Which "
            "are made does not depend on any figure.",
            '"only new": prompts that the new one is flagged on more often than the old one; '
            "prompts, not pictures, since pictures of one prompt are not independent.",
            '"no difference shown" does not say that there is no difference.',
        ],
    )


def _no_worse_table(run: Run, no_worse: Sequence[NoWorse]) -> Table:
    notes = [
        f"Shown where the 95% interval of the difference lies above -{MARGIN:g}, a margin that is "
        f"part of the program, and at least {ENOUGH} pictures were compared."
    ]
    if any(not one.test.enough for one in no_worse):
        notes.append(
            f"Sets of fewer than {ENOUGH} pictures claim nothing, whatever their interval: not "
            "seeing a difference in them says little."
        )
    return Table(
        "No worse on benign prompts?",
        "Paired non-inferiority; the difference is new minus old, above 0 is better.",
        ["new", "against", "prompts", "metric", "difference", "verdict"],
        [
            _row(run, one, one.metric, one.test.difference, one.test.words.partition(":")[0])
            for one in no_worse
        ],
        notes=notes,
    )
