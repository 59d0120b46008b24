"""What a grid file says: models, guidances, negatives, prompt sets, rules. YAML in, values out.

A grid crosses models x guidances x negatives x prompt sets x seeds. The undefended model is always
one of its cells, once per model, set and seed: preservation is measured against it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ine.errors import IneError, RecipeError, did_you_mean
from ine.evaluation.frechet import name_of
from ine.files import read_within, sha256_of, shipped
from ine.guidance.gates import Window
from ine.guidance.negative import SEVERAL
from ine.guidance.rewind import LADDER
from ine.guidance.table import find_method
from ine.judging.detectors import extractor_place
from ine.judging.rules import find_rule
from ine.prompts.screening import is_refused
from ine.recipe import (
    YAML_LIMIT,
    Count,
    Names,
    Section,
    Share,
    at_line,
    load_recipe,
    problems_of,
    read_yaml,
    yaml_lines,
)
from ine.sampling import SCHEDULERS

NONE = "none"
"""Name of the empty negative and of the guidance of the undefended model."""

ANY = "*"
PIXEL_MEASURE = "pixel-cosine@16"
FEATURE_MEASURE = "judge-cosine"
MEASURES = (FEATURE_MEASURE, PIXEL_MEASURE, "ssim", "lpips-alex@64")
"""Measures of preservation. "lpips-NET@SIZE" stands for any net and size."""

KEPT_SUBJECT = "subject"


def _listed(value):
    return (value,) if isinstance(value, str) else value


def _by_key(value):
    """Return {"*": value} for what is not told apart by model."""
    return value if isinstance(value, dict) else {ANY: value}


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.@+ -]*$")]
OneOrMore = Annotated[Names, BeforeValidator(_listed)]
Files = Annotated[dict[str, OneOrMore], BeforeValidator(_by_key)]
OneFile = Annotated[dict[str, str], BeforeValidator(_by_key)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class GridModel(Section):
    """A model: a base, and unlearned weights laid over it."""

    name: Name
    model: str | None = None
    """Base: "mini", a folder or a hub id; by default the concept's."""

    unet: OneOrMore = ()
    """FILE or FILE:WEIGHT, laid in this order; none is the base itself."""


class GridNegative(Section):
    """What stands in the negative slot; parts that are given stand in one string."""

    name: Name
    words: bool = False
    """The concept's own negative words."""

    text: str = ""
    oracle: bool = False
    """The words of the concept's implying test prompts, which no defender knows."""

    embeddings: Files = Field(default_factory=dict)
    """Files, or {model name: files}."""

    several: Literal[SEVERAL] = SEVERAL[0]
    """Several embeddings: all in one string, or for each picture the one that fits it."""

    group: str = ""
    """Negatives of one group, such as several inversion seeds, are one row of a report."""

    seeds: tuple[Seed, ...] = ()
    """Only these of the grid's seeds, so that every inversion seed meets one; all without any."""

    @model_validator(mode="before")
    @classmethod
    def _named_none(cls, value):
        return {"name": NONE} if value == NONE else value

    @property
    def is_empty(self):
        """Return whether nothing stands there."""
        return not (self.words or self.text.strip() or self.oracle or self.embeddings)


class GridGuidance(Section):
    """How a negative acts."""

    name: Name
    method: str = "cfg"
    preset: str | None = None
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    strengths: tuple[Strength, ...] = ()
    """Each is a configuration of its own; none is the method's own strength."""

    gate: OneFile = Field(default_factory=dict)
    """A file of `ine calibrate`, or {model, "*/negative" or "model/negative": file}."""

    window: Annotated[tuple[float, float], Field()] | None = None
    """Act in this part of the run only, two fractions."""

    rewind: Annotated[
        tuple[float, ...] | None, BeforeValidator(lambda v: LADDER if v is True else v)
    ] = None
    """Begin a picture anew where the gate opens: multiples of the strength, or true for 1, 2, 4."""

    models: OneOrMore = ()
    """Only these models; all without any."""

    negatives: OneOrMore = ()
    """Only these negatives, by name or group; all without any."""


class GridPrompts(Section):
    """A prompt set and what it is for."""

    name: Name
    source: str | None = None
    """A file, or a named set such as mini:fire/implying-test."""

    prompts: Names = ()
    """Prompts given here, instead of a source."""

    role: Literal["tune", "test"]
    """Choices are made on "tune" sets, figures reported on "test" sets."""

    expects: Literal["harmful", "benign", "neighbour"]
    limit: Count | None = None
    """Only the first rows."""

    category: str | None = None
    where: OneOrMore = ()
    unique: bool = False
    skip_empty: bool = False
    column: str | None = None
    images: Count = 1
    """Pictures per prompt and grid seed."""

    use_rows: bool = False
    """Take seed, guidance scale and size of a row where it has them."""

    embeddings: OneOrMore = ()
    """Files of embeddings whose triggers stand in the prompts: the attack by embedding."""


class GridSampler(Section):
    """How pictures are made; what is not given is what suits the model."""

    scheduler: str | None = None
    steps: Count | None = None
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    batch: Count | None = None
    """Pictures of a unit."""

    clip_skip: Count = 1
    weights: bool = False
    """Whether (words:1.2) in prompts and negatives are weights; by default brackets are letters."""


class GridJudges(Section):
    """Detectors that look instead of the rules' own, by the role of the prompt set."""

    tune: str | None = None
    test: str | None = None


class GridMetrics(Section):
    """What is measured besides the rules."""

    preservation: OneOrMore = (FEATURE_MEASURE,)
    """Names of `MEASURES`; each against the undefended picture of the same prompt and seed."""

    features: str | None = None
    """Detector whose picture features judge-cosine compares; by default the judge of choices."""

    clip_score: str | None = None
    """CLIP by which a picture is compared with its own prompt: mini-judge, clip, clip[FOLDER]."""

    frechet: str | None = None
    """CLIP, named likewise, of whose picture features the Frechet distance is, on sets that are
    not harmful."""

    subject: bool = False
    """Whether the picture shows the noun of its row; for sets whose rows have one."""

    categories: bool = False
    """Figures per category of the rows."""

    expected_maximum: Count | None = None
    """I2P's figure with this many prompts per draw."""

    @property
    def clip_score_name(self):
        """Return the name of the metric, "" where it is not asked for."""
        return f"clip-score-{self.clip_score}" if self.clip_score else ""

    @property
    def frechet_name(self):
        """Return the name of the metric, "" where it is not asked for."""
        return name_of(self.frechet) if self.frechet else ""


class GridChoose(Section):
    """How one strength is chosen, on tune sets: least flagged of those that keep enough."""

    keep: str = FEATURE_MEASURE
    """A measure of `metrics.preservation`, or "subject"; on benign sets."""

    level: Share = 0.9
    rule: str | None = None
    """The rule whose share on harmful sets is to be small; by default the first."""


class Grid(Section):
    """One grid. See the section classes for the fields."""

    kind: Literal["grid"]
    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    about: str = ""
    concept: str | None = None
    """A recipe, shipped or a file: its words, its rule, its base, its oracle."""

    models: Annotated[tuple[GridModel, ...], Field(min_length=1)]
    negatives: tuple[GridNegative, ...] = ()
    guidances: tuple[GridGuidance, ...] = ()
    prompts: Annotated[tuple[GridPrompts, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    sampler: GridSampler = GridSampler()
    rules: OneOrMore = ()
    """Names of `ine.judging.rules`; by default the concept's."""

    judges: GridJudges = GridJudges()
    metrics: GridMetrics = GridMetrics()
    choose: GridChoose | None = None


@dataclass(frozen=True, kw_only=True)
class GridFile:
    """A grid with where it came from."""

    grid: Grid
    path: Path
    text: str
    lines: dict
    """{key path: line}."""

    recipe: object = None
    """The concept's `ConceptRecipe`, where there is one."""

    def place(self, name):
        """Return a path of the grid: beside the grid file, or where the user stands."""
        beside, here = self.path.parent / Path(name).expanduser(), Path(name).expanduser()
        return here if here.exists() and not beside.exists() else beside

    def named(self, kind, name):
        """Return the entry of "models", "negatives", "guidances" or "prompts" by name."""
        return next(entry for entry in getattr(self.grid, kind) if entry.name == name)

    def at(self, *path):
        """Return "line 7: " for a key path."""
        return at_line(path, self.lines)

    @property
    def rules(self):
        """Return the rules, the concept's where none is named."""
        names = self.grid.rules or (self.recipe.pictures.rule,)
        return tuple(find_rule(name) for name in dict.fromkeys(names))

    @property
    def work(self):
        """Return a digest of all that decides which pictures there are."""
        fields = {"rules", "judges", "metrics", "choose", "about"}
        return sha256_of(self.grid.model_dump_json(exclude=fields).encode())[:16]

    @property
    def digest(self):
        """Return a digest of the whole grid."""
        return sha256_of(self.grid.model_dump_json().encode())[:16]


def list_grids():
    """Return {name: path} of the shipped grids."""
    folder = shipped("recipes")
    return {p.stem: p for kind in ("grids", "paper") for p in sorted(folder.glob(f"{kind}/*.yaml"))}


def load_grid(name_or_path):
    """Return the checked `GridFile` of a YAML file or a shipped grid's name.

    Files that it names are looked at later, by `ine.evaluation.expand.expand`.

    Raises:
        RecipeError: It cannot be read, or is wrong; all that is wrong is named, with lines.
    """
    path = Path(name_or_path).expanduser()
    known = list_grids()
    if not path.is_file() and str(name_or_path) in known:
        path = known[str(name_or_path)]
    if not path.is_file():
        hint = did_you_mean(path.name, known)
        raise RecipeError(f"{path}: no such grid file{hint}; shipped: {', '.join(known) or 'none'}")
    try:
        text = read_within(path, YAML_LIMIT)
        data = read_yaml(text)
        lines = yaml_lines(text) if data is not None else {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    try:
        grid = Grid.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{path}: " + "; ".join(problems_of(error, Grid, lines))) from error
    found = GridFile(grid=grid, path=path, text=text, lines=lines)
    if grid.concept:
        own = found.place(grid.concept)
        try:
            recipe = load_recipe(own if own.is_file() else grid.concept)
        except RecipeError as error:
            raise RecipeError(f"{path}: {found.at('concept')}concept: {error}") from error
        found = GridFile(grid=grid, path=path, text=text, lines=lines, recipe=recipe)
    if problems := list(_problems(found)):
        raise RecipeError(f"{path}: " + "; ".join(problems))
    return found


def _problems(file):
    """Yield what is wrong although each field by itself is right."""
    grid = file.grid
    for kind in ("models", "negatives", "guidances", "prompts"):
        names = [entry.name for entry in getattr(grid, kind)]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield f"{file.at(kind, number)}{kind}: {name!r} stands twice"
    for check in (_models, _negatives, _guidances, _prompts, _sampler, _judging, _choose):
        yield from check(file, grid)


def _models(file, grid):
    for number, model in enumerate(grid.models):
        if not model.model and not file.recipe:
            yield (
                f"{file.at('models', number)}model {model.name!r}: names no base; give model: or "
                "a concept:"
            )


def _negatives(file, grid):
    models = {m.name for m in grid.models} | {ANY}
    names = {n.name for n in grid.negatives}
    for number, negative in enumerate(grid.negatives):
        at = f"{file.at('negatives', number)}negative {negative.name!r}: "
        if negative.group in names:
            yield f"{at}its group has the name of a negative; give the group another one"
        if negative.is_empty and negative.name != NONE:
            yield f"{at}is empty; give words, text, oracle or embeddings, or call it {NONE}"
        if negative.name == NONE and not negative.is_empty:
            yield f"{at}is the empty one; give another name"
        if (negative.words or negative.oracle) and not file.recipe:
            yield f"{at}needs a concept: words and oracle are a recipe's"
        elif negative.oracle and "implying_test" not in file.recipe.prompt_sets:
            yield f"{at}recipe {file.recipe.name} has no prompt set implying_test for an oracle"
        for key in negative.embeddings:
            if key not in models:
                yield f"{at}embeddings: model {key!r} is unknown{did_you_mean(key, models)}"
        for seed in negative.seeds:
            if seed not in grid.seeds:
                yield f"{at}seed {seed} is not one of the grid's seeds, {_told(grid.seeds)}"
        if is_refused(negative.text):
            yield f"{at}its text is refused by screening (docs/prompts.md)"


def _told(values):
    return ", ".join(map(str, values))


def _guidances(file, grid):
    models = [m.name for m in grid.models]
    negatives = [n.name for n in grid.negatives if n.name != NONE]
    groups = [n.group for n in grid.negatives if n.group]
    for number, guidance in enumerate(grid.guidances):
        at = f"{file.at('guidances', number)}guidance {guidance.name!r}: "
        if guidance.name == NONE:
            yield f"{at}the undefended model is there by itself; leave it out"
        try:
            method = find_method(guidance.method)
        except IneError as error:
            yield f"{at}{error}"
            continue
        if guidance.strengths and not method.strengths:
            yield f"{at}{method.name} has no strength of its own; leave strengths out"
        if guidance.strengths and "strength" in guidance.settings:
            yield f"{at}give strengths or settings.strength, not both"
        if len(set(guidance.strengths)) < len(guidance.strengths):
            yield f"{at}strengths: one stands twice"
        if guidance.rewind is not None and not guidance.gate:
            yield f"{at}rewind needs a gate: who is begun anew is for a gate to say"
        for what, given, known in (
            ("model", guidance.models, models),
            ("negative", guidance.negatives, [*negatives, *groups]),
        ):
            for name in given:
                if name not in known:
                    yield f"{at}{what} {name!r} is unknown{did_you_mean(name, known)}"
        for key in guidance.gate:
            model, _, negative = key.partition("/")
            if model not in (ANY, *models) or (negative and negative not in negatives):
                yield f"{at}gate: {key!r} is no model, nor model/negative"
        if guidance.window:
            try:
                Window(*guidance.window)
            except IneError as error:
                yield f"{at}{error}"
    if grid.guidances and not negatives:
        yield f"{file.at('guidances')}guidances: there is no negative for them to act with"
    if negatives and not grid.guidances:
        yield f"{file.at('negatives')}negatives: there is no guidance by which they act"


def _prompts(file, grid):
    for number, given in enumerate(grid.prompts):
        at = f"{file.at('prompts', number)}prompts {given.name!r}: "
        if (given.source is None) == (not given.prompts):
            yield f"{at}give a source (a file or a named set) or prompts, one of them"
        if any(not text.strip() for text in given.prompts):
            yield f"{at}a prompt is empty"
        if any(is_refused(text) for text in given.prompts):
            yield f"{at}a prompt is refused by screening (docs/prompts.md)"


def _sampler(file, grid):
    name = grid.sampler.scheduler
    if name and name not in SCHEDULERS:
        told = f"scheduler {name!r} is unknown{did_you_mean(name, SCHEDULERS)}"
        yield f"{file.at('sampler', 'scheduler')}{told}; known: {', '.join(SCHEDULERS)}"
    if len(set(grid.seeds)) < len(grid.seeds):
        yield f"{file.at('seeds')}seeds: one stands twice"


def _judging(file, grid):
    if not grid.rules and not file.recipe:
        yield f"{file.at()}rules: missing; name at least one, or a concept"
    for name in grid.rules:
        try:
            find_rule(name)
        except RecipeError as error:
            yield f"{file.at('rules')}{error}"
    for name in grid.metrics.preservation:
        if name not in MEASURES and not is_lpips(name):
            hint = did_you_mean(name, MEASURES)
            yield (
                f"{file.at('metrics', 'preservation')}measure {name!r} is unknown{hint}; known: "
                f"{', '.join(MEASURES)}"
            )
    for metric in ("clip_score", "frechet"):
        name = getattr(grid.metrics, metric)
        if name is not None:
            try:
                extractor_place(name)
            except RecipeError as error:
                yield f"{file.at('metrics', metric)}{metric}: {error}"


def is_lpips(name):
    """Return whether a measure is "lpips-NET@SIZE"."""
    net, _, size = name.removeprefix("lpips-").partition("@")
    return name.startswith("lpips-") and net in ("alex", "vgg", "squeeze") and size.isdigit()


def _choose(file, grid):
    if grid.choose is None:
        return
    at = f"{file.at('choose')}choose: "
    sets = {(given.role, given.expects) for given in grid.prompts}
    for expects in ("harmful", "benign"):
        if ("tune", expects) not in sets:
            yield (
                f"{at}choices are made on tune sets, and there is none with role: tune and "
                f"expects: {expects}"
            )
    keep = grid.choose.keep
    known = [*grid.metrics.preservation, *([KEPT_SUBJECT] if grid.metrics.subject else [])]
    if keep not in known:
        yield f"{at}keep {keep!r} is not measured{did_you_mean(keep, known)}; metrics: {known}"
    rule = grid.choose.rule
    if rule and grid.rules and rule not in grid.rules:
        yield f"{at}rule {rule!r} is not one of rules{did_you_mean(rule, grid.rules)}"
