"""The result of a grid: one value, the same whether it was just scored or is read from a folder.

Rules of reporting that need no table are methods of `Run`: how groups of negatives are pooled, how
preservation is rescaled by its floor, by which rule choices are made. Which configurations may be
shown on test sets is in `ine.evaluation.reported`.

Shape letter: P pictures.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ine.evaluation.about import About, SetFacts
from ine.evaluation.cells import Configuration
from ine.evaluation.grid import Grid
from ine.evaluation.pictures import Pictures
from ine.evaluation.stats import Estimate

MATCHED = "dsr where"
"""How metrics begin that are read from a whole sweep, not from one configuration."""

FigureKey = tuple[Configuration, str, str, str, str]
"""Configuration, prompt set, metric, rule, category."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure with all that is needed to quote it; a line of `results.jsonl`."""

    configuration: Configuration
    """Its negative may be the name of a group."""

    prompts: str
    """Prompt set."""

    role: str
    expects: str
    metric: str
    """"flagged", "dsr", a measure of preservation, "subject", "unet-calls", ..."""

    estimate: Estimate
    interval: str
    """How the interval was computed."""

    rule: str = ""
    judge: str = ""
    """Detector or CLIP whose readings the figure rests on."""

    category: str = ""
    floor: float | None = None
    """Of preservation: the mean of unrelated pictures, which reads 0. Of a Frechet distance: that
    between two halves of the undefended pictures."""

    raw: float | None = None
    """Of preservation: the mean before rescaling. Of a Frechet distance: that between halves,
    which compares with the floor."""

    note: str = ""

    @property
    def key(self) -> FigureKey:
        """Return what the figure is of, without its value."""
        return (self.configuration, self.prompts, self.metric, self.rule, self.category)


def known(value: float | None) -> float | None:
    """Return a number as files have it; None for NaN, and for none."""
    return None if value is None or math.isnan(value) else float(value)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The strength that was chosen on tune sets for a model, guidance and negative."""

    configuration: Configuration
    options: int
    """How many strengths there were to choose from."""

    rule: str
    flagged: float
    """Share on the harmful tune sets; NaN if unknown."""

    keep: str
    """The measure that had to be kept."""

    kept: float
    """Its mean on the benign tune sets; NaN if unknown."""

    level: float
    reached: bool
    """Whether it keeps at least `level`; if no strength does, the one that keeps most is chosen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """All figures of a grid, its choices, and what is known of each picture."""

    folder: Path
    store: Path
    """Folder where the pictures are, if they are anywhere."""

    version: str
    """Version of ine that wrote the run folder."""

    grid: Grid
    text: str
    """The grid file, word by word."""

    about: About
    figures: tuple[Figure, ...]
    choices: tuple[Choice, ...]
    pictures: Mapping[tuple[Configuration, str], Pictures]
    """{(configuration, prompt set): its pictures}."""

    floors: Mapping[tuple[str, str, str], float]
    """{(model, prompt set, measure): mean likeness of unrelated undefended pictures}."""

    # --- figures

    @cached_property
    def found(self) -> dict[FigureKey, Figure]:
        """{`Figure.key`: figure}."""
        return {figure.key: figure for figure in self.figures}

    def figure(
        self,
        configuration: Configuration,
        prompts: str,
        metric: str,
        rule: str = "",
        category: str = "",
    ) -> Figure | None:
        """Return a figure, or None if the run does not have it."""
        return self.found.get((configuration, prompts, metric, rule, category))

    @cached_property
    def configurations(self) -> tuple[Configuration, ...]:
        """Every configuration and group with figures, in the order of the grid."""
        rows = (f.configuration for f in self.figures if not f.metric.startswith(MATCHED))
        return tuple(dict.fromkeys(rows))

    @cached_property
    def chosen(self) -> dict[Configuration, Choice]:
        """{chosen configuration: its choice}."""
        return {choice.configuration: choice for choice in self.choices}

    # --- groups of negatives

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """{group: names of its negatives}."""
        found: dict[str, list[str]] = {}
        for negative in self.grid.negatives:
            if negative.group:
                found.setdefault(negative.group, []).append(negative.name)
        return found

    @cached_property
    def _made(self) -> set[Configuration]:
        return {configuration for configuration, _ in self.pictures}

    def members(self, configuration: Configuration) -> tuple[Configuration, ...]:
        """Return the configurations that a row pools: those of a group, else itself."""
        names = self.groups.get(configuration.negative)
        if not names or configuration in self._made:
            return (configuration,)
        options = (replace(configuration, negative=name) for name in names)
        return tuple(option for option in options if option in self._made)

    def parts(self, configuration: Configuration, prompts: str) -> list[Pictures]:
        """Return the `Pictures` of a row on a prompt set, one of each member."""
        keys = [(member, prompts) for member in self.members(configuration)]
        return [self.pictures[key] for key in keys if key in self.pictures]

    def label(self, configuration: Configuration) -> str:
        """Return the name of a row."""
        count = len(self.members(configuration))
        return configuration.label + (f" ({count} pooled)" if count > 1 else "")

    # --- prompt sets, rules, measures

    @property
    def sets(self) -> dict[str, SetFacts]:
        """{prompt set: what is known of it}."""
        return self.about["sets"]

    def sets_of(self, role: str, *expects: str) -> list[str]:
        """Return the names of the prompt sets of a role that expect one of these."""
        return [
            name
            for name, facts in self.sets.items()
            if facts["role"] == role and facts["expects"] in expects
        ]

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of the rules."""
        return tuple(self.about["rules"])

    @property
    def rule(self) -> str:
        """The rule by which choices are made, the first if none is named."""
        choose = self.grid.choose
        return choose.rule if choose and choose.rule else self.rules[0]

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures of preservation that were taken."""
        return tuple(self.grid.metrics.preservation)

    def kept(
        self, configuration: Configuration, prompts: str, measure: str
    ) -> Callable[[Pictures], np.ndarray]:
        """Return a function of `Pictures`: likeness with the floor at 0 and identity at 1, (P,)."""
        floor = self.floors.get((configuration.model, prompts, measure), math.nan)

        def values(pictures: Pictures) -> np.ndarray:
            if not configuration.is_defended:
                return np.ones(len(pictures.keys))
            return (pictures.column("likeness", measure) - floor) / (1 - floor)

        return values
