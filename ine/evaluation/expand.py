"""From a grid to its cells: what is made under which name, before any model is loaded.

Everything that can be wrong without weights is found here, and the cell is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ine.embedding import read_embedding
from ine.errors import IneError, PromptError, RecipeError, did_you_mean
from ine.evaluation.grid import ANY, NONE, GridFile, GridPrompts
from ine.files import sha256_of
from ine.guidance.calibrate import read_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative, join_or_match
from ine.guidance.rewind import Rewind
from ine.guidance.table import build_guidance
from ine.models.stack import as_unet, parse_layer
from ine.prompts.finding import find_prompt_set
from ine.prompts.rows import PromptRow, PromptSet
from ine.runtime import seed_for
from ine.sampling import PictureRequest
from ine.text import trigger_pattern


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture that is wanted of a prompt set."""

    id: str
    """The row's."""

    prompt: str
    seed: int
    image: int
    """Which picture of its row, from 0."""

    cluster: str
    """What is independent: "phrase|noun" where the row says it, else a digest of the prompt."""

    noun: str = ""
    categories: tuple[str, ...] = ()
    guidance: float | None = None
    """Guidance scale of the row, where rows count."""

    size: tuple[int | None, int | None] = (None, None)
    """Width and height of the row in pixels, likewise."""

    embeddings: tuple = field(default=(), compare=False)
    """What the triggers in the prompt stand for."""

    @cached_property
    def request(self):
        """What is sampled; one value for all cells that want it."""
        return PictureRequest(prompt=self.prompt, seed=self.seed, embeddings=self.embeddings)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is compared: a model and a defence, or the model undefended."""

    model: str
    guidance: str = NONE
    strength: float | None = None
    negative: str = NONE

    @property
    def is_defended(self):
        """Return whether there is a defence."""
        return self.guidance != NONE

    @property
    def undefended(self):
        """Return the same model without the defence."""
        return Configuration(model=self.model)

    @property
    def label(self):
        """Return it as one text, for errors and tables."""
        if not self.is_defended:
            return f"{self.model}, undefended"
        at = "" if self.strength is None else f" at {self.strength:g}"
        return f"{self.model}, {self.guidance}{at}, {self.negative}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration on one prompt set with one grid seed."""

    configuration: Configuration
    prompts: str
    seed: int

    @property
    def label(self):
        """Return it as one text."""
        return f"{self.configuration.label}, on {self.prompts}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class SetOfPrompts:
    """A prompt set of a grid with its rows."""

    spec: GridPrompts
    found: PromptSet | None
    """None where its file is missing, which only a dry run lets pass."""

    limit: int | None = None
    """Pictures per cell, of `--limit`."""

    embeddings: tuple = field(default=(), hash=False, compare=False)
    """What the triggers in its prompts stand for."""

    items_of: Mapping = field(default_factory=dict, hash=False, compare=False)
    """{grid seed: its items}."""

    def items(self, seed):
        """Return the `Item`s of a grid seed: every row once, then every row's next picture."""
        if seed not in self.items_of:
            rows, spec = self.found.rows, self.spec
            items = [_item(row, k, seed, spec) for k in range(spec.images) for row in rows]
            items = [replace(i, embeddings=self._learned(i.prompt)) for i in items[: self.limit]]
            self.items_of[seed] = tuple(items)
        return self.items_of[seed]

    def _learned(self, prompt):
        """Return the embeddings whose triggers stand in a prompt."""
        return tuple(e for e in self.embeddings if trigger_pattern([e.trigger]).search(prompt))

    @property
    def count(self):
        """Return pictures per cell; None where it is not known."""
        if self.found is None and self.spec.limit is None:
            return self.limit
        rows = self.spec.limit if self.found is None else len(self.found.rows)
        return min(rows * self.spec.images, self.limit or rows * self.spec.images)


def _item(row, image, seed, spec):
    extra, own = row.extra, spec.use_rows
    named = extra.get("phrase") or extra.get("noun")
    phrase_and_noun = f"{extra.get('phrase', '')}|{extra.get('noun', '')}"
    return Item(
        id=row.id,
        prompt=row.prompt,
        seed=_seed_of(row, image, seed, own),
        image=image,
        cluster=phrase_and_noun if named else sha256_of(row.prompt.encode())[:16],
        noun=extra.get("noun", ""),
        categories=row.categories,
        guidance=row.guidance if own else None,
        size=(row.width, row.height) if own else (None, None),
    )


def _seed_of(row, image, seed, own):
    """Return a picture's seed: it depends on its row and the grid seed, on nothing else."""
    if own and row.seed is not None:
        # The published picture is that of seed 0; others are new ones.
        return row.seed + image if seed == 0 else seed_for(seed, "row", row.seed, image) % 2**32
    return seed_for(seed, "grid", row.id, row.prompt, image) % 2**32


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """All cells of a grid, what they are made with, and what is missing."""

    file: GridFile
    cells: tuple[Cell, ...]
    sets: dict
    """{name: `SetOfPrompts`}."""

    guidances: dict
    """{`Configuration`: `Guidance`, or None for the undefended model}."""

    calibrations: dict
    """{`Configuration`: `Calibration`} of those behind a gate."""

    unets: dict
    """{model name: None, a path or a `WeightStack`}."""

    missing: tuple[str, ...] = ()
    """Problems with files, which only a dry run lets pass."""

    @cached_property
    def configurations(self):
        """Return every configuration once, in order."""
        return tuple(dict.fromkeys(cell.configuration for cell in self.cells))

    def base_of(self, model):
        """Return the name of a model's base; a folder is relative to the grid file."""
        named = self.file.named("models", model).model
        if named is None:
            return self.file.recipe.base
        own = self.file.place(named)
        return str(own) if own.is_dir() else named


def expand(file, *, only=(), limit=None, lenient=False):
    """Return the `Expansion` of a grid.

    Args:
        file: A `GridFile`.
        only: Texts "key=value" as `--only` takes them; of the same key any, of several all. Files
            that only other cells need are not looked for.
        limit: Most pictures per cell.
        lenient: Note files that are missing or unusable instead of raising.

    Raises:
        RecipeError: Something is wrong with cells or files; each is named.
        PromptError: There is nothing wrong but a prompt set that cannot be read.
    """
    problems, kinds = {}, {}

    def tried(what, work):
        try:
            return work()
        except IneError as error:
            problems.setdefault(str(error), []).append(what)
            kinds.setdefault(type(error))
            return None

    grid = file.grid
    cells = chosen_cells(
        file,
        [
            Cell(configuration=configuration, prompts=spec.name, seed=seed)
            for configuration in _configurations(grid)
            for spec in grid.prompts
            for seed in _seeds(file, configuration)
        ],
        only,
    )
    # What no cell needs is not looked for: a part of a grid runs where another part cannot.
    prompts = {cell.prompts for cell in cells}
    models = {cell.configuration.model for cell in cells}
    sets = {}
    for number, spec in enumerate(grid.prompts):
        if spec.name in prompts:
            at = f"{file.at('prompts', number)}prompts {spec.name!r}"
            found = tried(at, lambda s=spec: _read_set(file, s))
            learned = tried(at, lambda s=spec, f=found: _learned_words(file, s, f)) or ()
            sets[spec.name] = SetOfPrompts(spec=spec, found=found, limit=limit, embeddings=learned)
    unets = {
        model.name: tried(
            f"{file.at('models', n)}model {model.name!r}", lambda m=model: _unet(file, m)
        )
        for n, model in enumerate(grid.models)
        if model.name in models
    }
    calibrations, embeddings = {}, {}
    guidances = {
        c: tried(f"cell {c.label}", lambda c=c: _guidance(file, c, embeddings, calibrations))
        for c in dict.fromkeys(cell.configuration for cell in cells)
    }
    missing = tuple(_told_once(problem, places) for problem, places in problems.items())
    if missing and not lenient:
        kind = next(iter(kinds)) if len(kinds) == 1 else RecipeError
        raise kind(f"{file.path}: " + "; ".join(missing))
    return Expansion(
        file=file,
        cells=cells,
        sets=sets,
        guidances=guidances,
        calibrations=calibrations,
        unets=unets,
        missing=missing,
    )


def _told_once(problem, places):
    """Return a problem with the first place that has it, and how many others there are."""
    more = len(places) - 1
    others = f" (and {more} other cell{'s' if more > 1 else ''})" if more else ""
    return f"{places[0]}{others}: {problem}"


def _configurations(grid):
    """Yield every `Configuration` of a grid, model by model, the undefended one first."""
    for model in grid.models:
        yield Configuration(model=model.name)
        for guidance in grid.guidances:
            for negative in _negatives(grid, guidance, model):
                for strength in guidance.strengths or (None,):
                    yield Configuration(
                        model=model.name,
                        guidance=guidance.name,
                        strength=strength,
                        negative=negative.name,
                    )


def _seeds(file, configuration):
    """Return the grid seeds of a configuration: those of its negative, where it names any."""
    if not configuration.is_defended:
        return file.grid.seeds
    own = file.named("negatives", configuration.negative).seeds
    return tuple(seed for seed in file.grid.seeds if not own or seed in own)


def _read_set(file, spec):
    filters = {
        "category": spec.category,
        "where": spec.where,
        "unique": spec.unique,
        "limit": spec.limit,
    }
    if spec.prompts:
        rows = [PromptRow(id=str(n), prompt=text.strip()) for n, text in enumerate(spec.prompts)]
        return PromptSet(name=spec.name, rows=tuple(rows[: spec.limit]), digest="", read=len(rows))
    own = file.place(spec.source)
    found = find_prompt_set(
        own if own.is_file() else spec.source,
        column=spec.column,
        skip_empty=spec.skip_empty,
        **filters,
    )
    if not found.rows:
        raise PromptError("is empty")
    return found


def _learned_words(file, spec, found):
    """Return the embeddings of a prompt set, each of which stands in one of its prompts."""
    learned = tuple(read_embedding(file.place(name)) for name in spec.embeddings)
    for embedding in learned:
        pattern = trigger_pattern([embedding.trigger])
        if found and not any(pattern.search(row.prompt) for row in found.rows):
            raise PromptError(
                f"the trigger {embedding.trigger!r} of its embeddings stands in none of its prompts"
            )
    return learned


def _unet(file, model):
    """Return what stands for `unet`, with a check that the files are there."""
    layers, missing = [], []
    for text in model.unet:
        layer = parse_layer(str(file.path.parent / text))
        if not layer.path.exists():
            layer = parse_layer(text)
        if not layer.path.exists():
            missing.append(text)
        layers.append(layer)
    if missing:
        where = f"neither beside {file.path.name} nor in this folder"
        raise RecipeError(f"unet {', '.join(missing)}: no such file or folder, {where}")
    return as_unet(layers)


def _negatives(grid, guidance, model):
    """Return the negatives that a guidance acts with on a model."""
    if guidance.models and model.name not in guidance.models:
        return []
    wanted = guidance.negatives
    return [
        negative
        for negative in grid.negatives
        if negative.name != NONE
        and (not wanted or negative.name in wanted or negative.group in wanted)
    ]


def _guidance(file, cell, embeddings, calibrations):
    """Return the `Guidance` of a configuration; None for the undefended model."""
    if not cell.is_defended:
        return None
    given = file.named("guidances", cell.guidance)
    negative = negative_of(file, file.named("negatives", cell.negative), cell.model, embeddings)
    settings = dict(given.settings)
    if cell.strength is not None:
        settings["strength"] = cell.strength
    guidance = build_guidance(given.method, negative, given.preset, settings)
    window = Window(*given.window) if given.window else None
    path = _gate_file(given.gate, cell)
    if path is None:
        if given.gate:
            raise RecipeError(f"its gate names no file for model {cell.model!r}")
        return Gated(guidance, window) if window else guidance
    calibration = calibrations[cell] = read_calibration(file.place(path))
    if given.rewind is not None:
        method = Gated(guidance, window) if window else guidance
        rewind = Rewind(method, calibration.gate, tuple(given.rewind))
        # A strength that is not set cannot be multiplied; found out here.
        _ = rewind.attempts
        return rewind
    return Gated(guidance, _within(calibration.gate, window))


def _within(gate, window):
    return gate if window is None else replace(gate, window=window)


def _gate_file(gates, cell):
    keys = (f"{cell.model}/{cell.negative}", f"{ANY}/{cell.negative}", cell.model, ANY)
    return next((gates[key] for key in keys if key in gates), None)


def negative_of(file, given, model, embeddings=None):
    """Return the `Negative` or `Matched` of a `GridNegative` on a model.

    Args:
        file: The `GridFile`.
        given: The entry.
        model: A model's name.
        embeddings: {path: `ConceptEmbedding`} that were read already; added to.
    """
    known = {} if embeddings is None else embeddings
    texts = [given.text.strip()]
    if given.words:
        texts.append(file.recipe.words.negative_text())
    if given.oracle:
        texts.append(_oracle(file.recipe))
    names = given.embeddings.get(model, given.embeddings.get(ANY))
    if given.embeddings and names is None:
        raise RecipeError(f"it names no embedding for model {model!r}")
    found = []
    for name in names or ():
        path = file.place(name)
        if path not in known:
            known[path] = read_embedding(path)
        found.append(known[path])
    text = ", ".join(filter(None, texts))
    if len(found) > 1:
        return join_or_match(text, tuple(found), given.several)
    return Negative(text, tuple(found))


def _oracle(recipe):
    from ine.evaluation.full import oracle

    return oracle(recipe)


KEYS = {
    "model": lambda file, cell: [cell.configuration.model],
    "guidance": lambda file, cell: [cell.configuration.guidance],
    "negative": lambda file, cell: [
        cell.configuration.negative,
        *(n.group for n in file.grid.negatives if n.name == cell.configuration.negative),
    ],
    "strength": lambda file, cell: [
        "" if cell.configuration.strength is None else f"{cell.configuration.strength:g}"
    ],
    "prompts": lambda file, cell: [cell.prompts],
    "role": lambda file, cell: [file.named("prompts", cell.prompts).role],
    "expects": lambda file, cell: [file.named("prompts", cell.prompts).expects],
    "seed": lambda file, cell: [str(cell.seed)],
}
"""What `--only` can ask for -> the values that a cell has."""

OF_DEFENCES = ("guidance", "negative", "strength")


def chosen_cells(file, cells, only):
    """Return the cells that `--only` leaves; the undefended ones that they need among them.

    Raises:
        RecipeError: A key or value is unknown, or nothing is left.
    """
    wanted = {}
    for text in only:
        key, equals, value = text.partition("=")
        if not equals or key not in KEYS:
            hint = did_you_mean(key, KEYS)
            raise RecipeError(f"--only {text}: expected KEY=VALUE{hint}; keys: {', '.join(KEYS)}")
        known = dict.fromkeys(v for cell in cells for v in KEYS[key](file, cell) if v)
        if value not in known:
            hint = did_you_mean(value, known)
            raise RecipeError(
                f"--only {text}: {key} {value!r} is not in this grid{hint}; there are "
                f"{', '.join(known) or 'none'}"
            )
        wanted.setdefault(key, set()).add(value)

    def left(cell):
        undefended = not cell.configuration.is_defended
        keys = [k for k in wanted if not (undefended and k in OF_DEFENCES)]
        return all(wanted[key] & set(KEYS[key](file, cell)) for key in keys)

    found = tuple(filter(left, cells))
    if not found:
        raise RecipeError(f"--only {' '.join(only)}: no cell of the grid is left")
    return found
