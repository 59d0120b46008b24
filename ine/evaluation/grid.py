"""What a grid file says: models, guidances, negatives, prompt sets, rules.

A grid crosses models x guidances x negatives x prompt sets x seeds. The undefended model is always
one of its cells, once per model, set and seed: preservation is measured against it.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from ine.guidance.applied import RECOMMENDED
from ine.guidance.restart import LADDER
from ine.recipe.sections import Count, Names, Share
from ine.refining.settings import Query
from ine.yaml_files import Section

NONE = "none"
"""Name of the empty negative and of the guidance of the undefended model."""

ANY = "*"
PIXEL_MEASURE = "pixel-cosine@16"
FEATURE_MEASURE = "judge-cosine"
MEASURES = (FEATURE_MEASURE, PIXEL_MEASURE, "ssim", "lpips-alex@64")
"""Measures of preservation. "lpips-NET@SIZE" stands for any net and size."""

KEPT_SUBJECT = "subject"


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _by_key(value: Any) -> Any:
    """Return {"*": value} for a value that holds for every model."""
    return value if isinstance(value, dict) else {ANY: value}


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.@+ -]*$")]
OneOrMore = Annotated[Names, BeforeValidator(_listed)]
Files = Annotated[dict[str, OneOrMore], BeforeValidator(_by_key)]
OneFile = Annotated[dict[str, str], BeforeValidator(_by_key)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class GridModel(Section):
    """A model: a base, and unlearned weights applied to it."""

    name: Name
    model: str | None = None
    """Base: "mini", a folder or a hub id; by default the concept's."""

    unet: OneOrMore = ()
    """FILE or FILE:WEIGHT, applied in this order; without any, the base itself."""


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

    group: str = ""
    """Negatives of one group, such as several inversion seeds, are one row of a report."""

    seeds: tuple[Seed, ...] = ()
    """Only these of the grid's seeds, so that every inversion seed meets one; all without any."""

    @model_validator(mode="before")
    @classmethod
    def _named_none(cls, value: Any) -> Any:
        if isinstance(value, dict) and "several" in value:
            # Grids of earlier versions may say so; joined is the only way now.
            if value["several"] != "join":
                raise ValueError(
                    "several: matching embeddings per picture was removed; leave several out, "
                    "and the embeddings are joined in one string"
                )
            value = {key: one for key, one in value.items() if key != "several"}
        return {"name": NONE} if value == NONE else value

    @property
    def is_empty(self) -> bool:
        """Return whether nothing stands there."""
        return not (self.words or self.text.strip() or self.oracle or self.embeddings)


class GridRefine(Section):
    """Prompts refined by what is seen in their pictures, see docs/refine.md."""

    observer: str
    """Who looks and rewrites, such as vlm:FOLDER, openai:URL#MODEL or teacher:CONCEPT."""

    rounds: Annotated[
        tuple[Annotated[int, Field(ge=1, le=20)], ...],
        Field(min_length=1),
        BeforeValidator(lambda v: tuple(range(1, v + 1)) if type(v) is int and 0 < v < 21 else v),
    ] = (1, 2, 3)
    """Looks at most; each number is a row of its own, "NAME@2", and 3 stands for 1, 2 and 3."""

    protocol: str = "ine"
    """Name of `ine.refining.settings.PRESETS`."""

    query: Query | None = None
    """Which prompt is shown; by default the protocol's."""

    picture: bool | None = None
    """Whether the picture is shown; by default as an adapter was trained, else it is."""

    system: str | None = None
    """The system message; by default the one that an adapter was trained with, else ours."""

    user: str | None = None
    """The user message, with {prompt}; by default as for `system`."""

    padding: Literal["left", "right"] | None = None
    """Side on which a local model's shorter conversations are padded; by default the protocol's."""

    batch: Annotated[int, Field(ge=1)] | None = None
    """Conversations that a local model answers at a time."""

    against: str | None = None
    """A guidance that refines too: each row is compared with its row of as many rounds, too."""


class GridRewrite(Section):
    """Prompts rewritten before any picture is made, see docs/posi.md."""

    by: str
    """Who rewrites: teacher:CONCEPT, openai:URL#MODEL or model:BASE+ADAPTER, whose folders are
    looked for beside the grid, then in the current folder."""

    instruction: str | None = None
    """What it is asked; by default what it learned with."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.95
    max_tokens: Count = 128
    seed: Seed = 0
    """Of a local model's drawing."""


class GridGuidance(Section):
    """How a negative acts."""

    name: Name
    method: str = "cfg"
    """A name of `ine.guidance.table.METHODS`, or "recommended": as the embeddings' files say."""

    preset: str | None = None
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    strengths: tuple[Strength, ...] = ()
    """Each is a separate configuration; without any, the method's default strength is used."""

    gate: OneFile = Field(default_factory=dict)
    """A file of `ine calibrate`, or {model, "*/negative" or "model/negative": file}; "recommended"
    is the one beside each embedding, with the part of the run that the embedding's file states."""

    look_ahead: bool = True
    """Whether the gate decides before the first step, where its file knows how; else at half the
    run."""

    window: Annotated[tuple[float, float], Field()] | None = None
    """Act in this part of the run only, two fractions."""

    restart: Annotated[
        tuple[float, ...] | None, BeforeValidator(lambda v: LADDER if v is True else v)
    ] = None
    """Restart a picture where the gate opens: multiples of the strength, or true for 1, 1, 1; []
    for none. Without it, as the files recommend where the method is "recommended", else none."""

    last_resort: Strength | None = None
    """After all of `restart`, one more with additive guidance at this strength."""

    refine: GridRefine | None = None
    """Refine the prompts of what this makes; rows "NAME@0" have none of it yet."""

    rewrite: GridRewrite | None = None
    """Rewrite the prompts of what this makes; with `refine`, the rewritten prompts are refined."""

    models: OneOrMore = ()
    """Only these models; all without any."""

    negatives: OneOrMore = ()
    """Only these negatives, by name or group; all without any. "none" is for `refine` and `rewrite`
    of what the model makes without a negative."""

    @property
    def as_recommended(self) -> bool:
        """Return whether the embeddings' files say what their negative does, or where."""
        return RECOMMENDED in (self.method, *self.gate.values())

    @property
    def is_alone(self) -> bool:
        """Return whether it changes the prompts of a model without a negative."""
        return bool(self.refine or self.rewrite) and self.negatives == (NONE,)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        # Grids of earlier versions call it rewind.
        if isinstance(value, dict) and "rewind" in value and "restart" not in value:
            return {("restart" if key == "rewind" else key): one for key, one in value.items()}
        return value


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

    confidence: bool = False
    """The mean of the score that each rule compares, beside the share that it flags."""

    categories: bool = False
    """Figures per category of the rows."""

    expected_maximum: Count | None = None
    """I2P's figure with this many prompts per draw."""


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
    """Names of `ine.detectors.rules`; by default the concept's."""

    judges: GridJudges = GridJudges()
    metrics: GridMetrics = GridMetrics()
    choose: GridChoose | None = None


def with_rounds(grid: Grid) -> Grid:
    """Return a grid in which every number of rounds is a guidance of its own, round 0 among them.

    Round 0 of what refines the undefended model is that model, which every grid has, unless its
    prompts were rewritten.
    """
    found: list[GridGuidance] = []
    for guidance in grid.guidances:
        refine = guidance.refine
        if refine is None:
            found.append(guidance)
            continue
        if guidance.rewrite or not guidance.is_alone:
            found.append(guidance.model_copy(update={"name": f"{guidance.name}@0", "refine": None}))
        for count in sorted(set(refine.rounds)):
            own = {"refine": refine.model_copy(update={"rounds": (count,)})}
            found.append(guidance.model_copy(update={"name": f"{guidance.name}@{count}", **own}))
    return grid.model_copy(update={"guidances": tuple(found)})


Entry = TypeVar("Entry", GridModel, GridNegative, GridGuidance, GridPrompts)


def named(entries: Sequence[Entry], name: str) -> Entry:
    """Return the entry of a name."""
    return next(entry for entry in entries if entry.name == name)
