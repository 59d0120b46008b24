"""A run folder of `ine evaluate` read back: figures, choices and what is known of each picture.

Everything comes from the files that `ine.evaluation.results` wrote; no model is loaded.

Shape letter: P pictures.
"""

import json
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ine.errors import OutputError
from ine.evaluation.engine import HEAD, SOURCE
from ine.evaluation.expand import Configuration
from ine.evaluation.grid import KEPT_SUBJECT, Grid
from ine.evaluation.metrics import Estimate
from ine.evaluation.results import ABOUT, CHOSEN, FIGURES, PICTURES
from ine.files import JSON_LIMIT, read_within
from ine.recipe import read_yaml

FLAGGED, CALLS = "flagged", "unet-calls"
MATCHED = "dsr where"
"""How metrics begin that are read from a whole sweep, not from one configuration."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure, a line of `results.jsonl`."""

    configuration: Configuration
    """Its negative may be a group's name."""

    prompts: str
    role: str
    expects: str
    metric: str
    rule: str
    judge: str
    category: str
    estimate: Estimate
    interval: str
    floor: float | None
    raw: float | None
    chosen: bool
    note: str

    @property
    def key(self):
        """Return what the figure is of, without its value."""
        return (self.configuration, self.prompts, self.metric, self.rule, self.category)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What is known of the pictures of one configuration on one prompt set, seeds together."""

    keys: tuple
    """(grid seed, row id, picture of the row, seed) per picture: equal keys, equal start."""

    clusters: tuple[str, ...]
    nouns: tuple[str, ...]
    units: tuple
    """(unit, place in it) per picture, where the store has it."""

    calls: np.ndarray
    """U-Net evaluations, (P,)."""

    flagged: dict
    """{rule: (P,) bool}."""

    scores: dict
    """{rule: (P,)}."""

    likeness: dict
    """{measure: (P,)}, raw; empty for the undefended model."""

    subject: np.ndarray | None
    """(P,) bool; None where not asked."""

    clip_score: np.ndarray | None = None
    """100 times the cosine of picture and prompt, (P,); None where not asked."""

    @cached_property
    def place_of(self):
        """Return {key: number}."""
        return {key: number for number, key in enumerate(self.keys)}


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFolder:
    """All that a run folder says."""

    folder: Path
    store: Path
    """Where pictures are, if they are anywhere."""

    head: dict
    grid: Grid
    text: str
    """The grid file, word by word."""

    about: dict
    records: tuple[Record, ...]
    choices: tuple[dict, ...]
    pictures: dict = field(default_factory=dict)
    """{(`Configuration`, prompt set): `Pictures`}."""

    @cached_property
    def found(self):
        """Return {`Record.key`: record}."""
        return {record.key: record for record in self.records}

    def record(self, configuration, prompts, metric, rule="", category=""):
        """Return a `Record`, None where there is none."""
        return self.found.get((configuration, prompts, metric, rule, category))

    @cached_property
    def configurations(self):
        """Return every configuration and group that has figures, in the order of the grid."""
        rows = (r.configuration for r in self.records if not r.metric.startswith(MATCHED))
        return tuple(dict.fromkeys(rows))

    @cached_property
    def groups(self):
        """Return {group: names of its negatives}."""
        found = {}
        for negative in self.grid.negatives:
            if negative.group:
                found.setdefault(negative.group, []).append(negative.name)
        return found

    def members(self, configuration):
        """Return the configurations that a row pools: those of a group, else itself."""
        names = self.groups.get(configuration.negative)
        if not names or configuration in self._made:
            return (configuration,)
        options = (replace(configuration, negative=name) for name in names)
        return tuple(option for option in options if option in self._made)

    @cached_property
    def _made(self):
        return {configuration for configuration, _ in self.pictures}

    def label(self, configuration):
        """Return a row's name."""
        count = len(self.members(configuration))
        return configuration.label + (f" ({count} pooled)" if count > 1 else "")

    @property
    def sets(self):
        """Return {prompt set: what is known of it}."""
        return self.about["sets"]

    def sets_of(self, role, *expects):
        """Return the names of the prompt sets of a role that expect this."""
        return [
            name
            for name, facts in self.sets.items()
            if facts["role"] == role and facts["expects"] in expects
        ]

    @property
    def rules(self):
        """Return the names of the rules."""
        return tuple(self.about["rules"])

    @property
    def rule(self):
        """Return the rule by which choices are made, the first where none is named."""
        choose = self.grid.choose
        return choose.rule if choose and choose.rule else self.rules[0]

    @property
    def measures(self):
        """Return the measures of preservation that were taken."""
        return tuple(self.grid.metrics.preservation)

    def parts(self, configuration, prompts):
        """Return [`Pictures`] of a row on a prompt set, one of each member."""
        keys = [(member, prompts) for member in self.members(configuration)]
        return [self.pictures[key] for key in keys if key in self.pictures]

    def floor(self, model, prompts, measure):
        """Return what unrelated pictures have of a measure; NaN where nothing says it."""
        for record in self.records:
            same = (record.configuration.model, record.prompts) == (model, prompts)
            if same and record.floor is not None and record.metric.split()[-1] == measure:
                return record.floor
        return math.nan

    def kept(self, configuration, prompts, measure):
        """Return a function of `Pictures`: likeness with the floor at 0 and identity at 1, (P,)."""
        floor = self.floor(configuration.model, prompts, measure)

        def values(pictures):
            if not configuration.is_defended:
                return np.ones(len(pictures.keys))
            return (pictures.likeness[measure] - floor) / (1 - floor)

        return values


def read_run(folder, store=None):
    """Return the `RunFolder` of a folder.

    Args:
        folder: Where `ine evaluate` wrote its results.
        store: Where its pictures are, if not where the run says.

    Raises:
        OutputError: It is no run folder, or is not finished, or a file of it is damaged.
    """
    folder = Path(folder)
    head = _json(folder, HEAD)
    if not isinstance(head, dict) or head.get("kind") != "grid-run":
        raise OutputError(f"{folder / HEAD}: is not of `ine evaluate`; give its run folder")
    about = _json(folder, ABOUT)
    text = _text(folder, SOURCE)
    try:
        grid = Grid.model_validate(read_yaml(text))
    except (ValidationError, ValueError) as error:
        raise OutputError(
            f"{folder / SOURCE}: is no grid that this version of ine reads; run `ine evaluate` "
            f"there again ({str(error).splitlines()[0]})"
        ) from error
    try:
        if about["digest"] != head["digest"]:
            raise OutputError(
                f"{folder}: its results are of another grid than {HEAD} says; run `ine evaluate` "
                "there again"
            )
        _ = [(s["role"], s["expects"], s["rows"]) for s in about["sets"].values()]
        _ = dict(about["rules"]), dict(about["models"])
        records = tuple(_record(line) for line in _lines(folder, FIGURES))
        pictures = _pictures(_lines(folder, PICTURES))
        choices = tuple(_json(folder, CHOSEN))
        _ = [_configuration(choice) for choice in choices]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(
            f"{folder}: its results are damaged or of another version ({error!r}); run "
            "`ine evaluate` there again, which makes no picture that is there"
        ) from error
    return RunFolder(
        folder=folder,
        store=Path(store) if store else folder / head.get("store", ""),
        head=head,
        grid=grid,
        text=text,
        about=about,
        records=records,
        choices=choices,
        pictures=pictures,
    )


def _text(folder, name):
    path = folder / name
    try:
        return read_within(path, JSON_LIMIT)
    except FileNotFoundError as error:
        what = "is no folder" if not folder.is_dir() else f"has no {name}"
        raise OutputError(
            f"{folder}: {what}; give the run folder of an `ine evaluate` that has ended"
        ) from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from error


def _json(folder, name):
    try:
        return json.loads(_text(folder, name))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{folder / name}: is damaged ({error}); run it again") from error


def _lines(folder, name):
    """Yield the values of a file of JSON lines, one at a time."""
    path = folder / name
    if not path.is_file():
        _text(folder, name)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OutputError(f"{path}: line {number} is damaged; run it again") from error


def _configuration(line):
    return Configuration(
        model=line["model"],
        guidance=line["guidance"],
        strength=line["strength"],
        negative=line["negative"],
    )


def chosen_of(choice):
    """Return the `Configuration` of a line of `chosen.json`."""
    return _configuration(choice)


def _record(line):
    numbers = (math.nan if line[k] is None else float(line[k]) for k in ("value", "low", "high"))
    texts = ("prompts", "role", "expects", "metric", "rule", "judge", "category")
    return Record(
        configuration=_configuration(line),
        estimate=Estimate(*numbers, int(line["pictures"]), int(line["clusters"])),
        **{k: line[k] for k in (*texts, "interval", "floor", "raw", "chosen", "note")},
    )


def _pictures(lines):
    """Return {(configuration, prompt set): `Pictures`}; columns, so that many fit in memory."""
    columns = {}
    for line in lines:
        own = columns.setdefault((_configuration(line), line["prompts"]), {})
        own.setdefault("keys", []).append(
            (line["grid_seed"], line["id"], line["image"], line["seed"])
        )
        own.setdefault("units", []).append((line["unit"], line["place"]))
        for name, column in (("cluster", "clusters"), ("noun", "nouns"), ("unet_calls", "calls")):
            own.setdefault(column, []).append(line[name])
        for name in (KEPT_SUBJECT, "clip_score"):
            if name in line:
                own.setdefault(name, []).append(line[name])
        for name in ("flagged", "score", "likeness"):
            for rule, value in line[name].items():
                own.setdefault(name, {}).setdefault(rule, []).append(value)
    return {key: _packed(own) for key, own in columns.items()}


def _packed(own):
    def arrays(name, kind):
        return {k: np.array(v, dtype=kind) for k, v in own.get(name, {}).items()}

    subject, clip_score = own.get(KEPT_SUBJECT), own.get("clip_score")
    return Pictures(
        keys=tuple(own["keys"]),
        clusters=tuple(own["clusters"]),
        nouns=tuple(own["nouns"]),
        units=tuple(own["units"]),
        calls=np.array(own["calls"], dtype=np.int64),
        flagged=arrays("flagged", bool),
        scores=arrays("score", np.float64),
        likeness=arrays("likeness", np.float64),
        subject=None if subject is None else np.array(subject, dtype=bool),
        clip_score=None if clip_score is None else np.array(clip_score, dtype=np.float64),
    )
