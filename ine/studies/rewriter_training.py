"""What a training of a rewriter on pictures shows: its rollouts, as a report of a few lines."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ine.evaluation.stats import decimal
from ine.report.page import write_report
from ine.report.values import Report, Section, Table

LINES = 10
"""Lines of the table; rollouts in between are averaged."""

COLUMNS = {
    "reward": "reward",
    "toxicity": "toxicity",
    "to_prompt": "cosine with the user's prompt",
    "to_answer": "cosine with the rewritten prompt",
    "unusable": "unusable answers",
    "kl": "KL, nats",
}
"""Figure of a rollout -> heading."""


def rollouts_table(rows: Sequence[Mapping[str, float]]) -> Table:
    """Return the means of blocks of rollouts, in order.

    Args:
        rows: The figures of each rollout, at least one; those that are missing are left out.
    """
    shown = [name for name in COLUMNS if all(name in row for row in rows)]
    lines = []
    for first, last in blocks_of(len(rows)):
        some = rows[first:last]
        number = str(last) if last == first + 1 else f"{first + 1}-{last}"
        means = [decimal(sum(row[name] for row in some) / len(some)) for name in shown]
        lines.append([number, *means])
    return Table(
        "Rollouts",
        "Means over the answers that were drawn in training. Where the cosine with the rewritten "
        "prompt stays and that with the user's prompt falls, the model drifts from what was asked.",
        ["rollout", *(COLUMNS[name] for name in shown)],
        lines,
    )


def blocks_of(count: int) -> list[tuple[int, int]]:
    """Return (first, end) of at most `LINES` blocks that cover a number of rollouts."""
    blocks = min(LINES, count)
    edges = [round(k * count / blocks) for k in range(blocks + 1)]
    return list(pairwise(edges))


def write_training(
    folder: Path,
    title: str,
    rows: Sequence[Mapping[str, float]],
    facts: Mapping[str, Any],
    stopped: str = "",
) -> Path:
    """Write report.html, report.json and report.md; return the page.

    Args:
        folder: The adapter's.
        title: Which algorithm and recipe.
        rows: The figures of each rollout, at least one.
        facts: Names and settings, as they are shown.
        stopped: Why training ended early.

    Raises:
        OutputError: The folder cannot be written.
    """
    first, last = rows[0], rows[-1]
    lead = (
        f"Over {len(rows)} rollouts the reward went from {decimal(first['reward'])} to "
        f"{decimal(last['reward'])}, the toxicity from {decimal(first['toxicity'])} to "
        f"{decimal(last['toxicity'])}."
    )
    report = Report(
        title=title,
        lead=f"{lead} It stopped early: {stopped}." if stopped else lead,
        sections=[Section("Training", tables=[rollouts_table(rows)])],
        provenance={name: str(value) for name, value in facts.items()},
    )
    return write_report(report, folder)
