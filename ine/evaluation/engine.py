"""Running a grid: units that nobody has are made, by any number of processes, and looked at.

`prepare` finds out all that there is to do, `run` does what is missing, and does no harm where
another process does the same. What is stored is scored by `ine.evaluation.score`.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ine import __version__
from ine.embedding import tell_fits
from ine.errors import IneError, MissingDependency, OutputError, RecipeError
from ine.evaluation.compare import Look
from ine.evaluation.expand import Cell, Configuration, Expansion, expand
from ine.evaluation.grid import FEATURE_MEASURE, PIXEL_MEASURE, GridFile
from ine.evaluation.store import Missing, Store
from ine.evaluation.units import (
    PICTURE_VERSION,
    cost_of,
    made_by,
    make_unit,
    model_digest,
    plan_units,
)
from ine.files import sha256_of, why_refused, write_json, write_text
from ine.guidance.calibrate import check_calibrated
from ine.guidance.protocol import Prompts
from ine.guidance.rewind import Rewind
from ine.guidance.safree import Safree
from ine.judging.detection import JOIN, detect
from ine.judging.detectors import (
    check_detector,
    check_extractor,
    is_bare_clip,
    load_detector,
    load_extractor,
)
from ine.judging.raw import detectors_for
from ine.models.checkpoints import lay_weights
from ine.models.loading import load_parts
from ine.models.parts import find_model
from ine.models.stack import layers_of
from ine.runtime import pick_device, pick_dtype
from ine.sampling import SamplerSettings
from ine.text import Reading
from ine.weights_in_prompts import is_weighted, read_weights

log = logging.getLogger("ine")

HEAD, SOURCE = "grid.json", "grid.yaml"
WAIT = 0.2
"""Seconds between looks at units that other processes are making."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What of a model has to be known to plan; kept, so that scoring again loads no weights."""

    digest: str
    family: str
    name: str
    """What it was recognised as."""

    scheduler: str
    steps: int
    guidance_scale: float
    batch: int
    width: int
    height: int

    def other_size(self, size):
        """Return width and height where they are not the model's own, else (None, None)."""
        own = (self.width, self.height)
        wanted = tuple(w or o for w, o in zip(size, own, strict=True))
        return (None, None) if wanted == own else wanted


def facts_of(parts):
    """Return the `ModelFacts` of parts."""
    usual, few = parts.traits, parts.few_steps
    side = parts.pixels_per_latent
    return ModelFacts(
        digest=model_digest(parts),
        family=parts.family,
        name=f"{parts.name}, U-Net {parts.unet_name}",
        scheduler=few.scheduler if few else "ddim",
        steps=(few or usual).steps,
        guidance_scale=(few or usual).guidance_scale,
        batch=usual.batch,
        width=parts.latent_shape[2] * side,
        height=parts.latent_shape[1] * side,
    )


@dataclass(kw_only=True)
class Shelf:
    """The models of a grid: one laid model at a time, bases kept."""

    expansion: Expansion
    store: Store
    device: torch.device
    dtype: torch.dtype
    bases: dict = field(default_factory=dict)
    current: tuple = ("", None)
    writes: bool = True
    """Whether facts are kept; a dry run writes nothing."""

    def parts(self, name):
        """Return the parts of a model of the grid; embeddings and gates are not looked at.

        Raises:
            ModelError: Its base cannot be had.
            CheckpointError: Its weights do not fit.
        """
        if self.current[0] != name:
            self.current = ("", None)
            base = self.expansion.base_of(name)
            if base not in self.bases:
                self.bases[base] = load_parts(base, self.device, self.dtype)
            parts, unet = self.bases[base], self.expansion.unets[name]
            if unet is not None:
                parts, weights = lay_weights(parts, unet)
                if not weights.is_base:
                    log.info("model %s: %s", name, weights.describe())
            self.current = (name, parts)
        return self.current[1]

    def facts(self, name):
        """Return the `ModelFacts`, from the store where the same files were loaded before."""
        path = Path(self.store.folder) / "models" / f"{self._files_key(name)}.json"
        try:
            return ModelFacts(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            found = facts_of(self.parts(name))
            if self.writes:
                write_json(path, asdict(found))
            return found

    def _files_key(self, name):
        """Return a hash of the files of a model, by name, size and time of change."""
        base, unet = self.expansion.base_of(name), self.expansion.unets[name]
        roots = [find_model(base)] + ([] if unet is None else [x.path for x in layers_of(unet)])
        stamps = [str(self.dtype), str(unet), __version__, str(PICTURE_VERSION)]
        for root in roots:
            files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
            for file in files:
                stat = file.stat()
                stamps.append(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        return sha256_of("\n".join(stamps).encode())[:32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a grid needs, and where it is kept."""

    expansion: Expansion
    folder: Path
    store: Store
    shelf: Shelf
    facts: dict
    """{model: `ModelFacts`, or None where it cannot be had here}."""

    only: tuple[str, ...] = ()
    limit: int | None = None
    missing: tuple[str, ...] = ()
    """What keeps it from being run; only a dry run has any."""

    @property
    def file(self) -> GridFile:
        """Return the grid file."""
        return self.expansion.file

    def sampler(self, model):
        """Return the `SamplerSettings` of a model: the grid's, else what suits the model."""
        given, own = self.file.grid.sampler, self.facts[model]
        reading = Reading(weights=given.weights, clip_skip=given.clip_skip)
        usual = SamplerSettings()
        return SamplerSettings(
            scheduler=given.scheduler or (own or usual).scheduler,
            steps=given.steps or (own or usual).steps,
            guidance_scale=given.guidance_scale or (own or usual).guidance_scale,
            batch=given.batch or (own or usual).batch,
            reading=reading,
        )

    @cached_property
    def units_of(self):
        """Return {`Cell`: its units}, of the models that are here."""
        known, found = {}, {}
        for cell in self.expansion.cells:
            configuration, prompts = cell.configuration, self.expansion.sets[cell.prompts]
            model = configuration.model
            if self.facts[model] is None or prompts.found is None:
                continue
            guidance = self.expansion.guidances[configuration]
            if configuration.is_defended and guidance is None:
                continue
            items = prompts.items(cell.seed)
            found[cell] = plan_units(
                configuration, guidance, items, self.sampler(model), self.facts[model]
            )
            for number, unit in enumerate(found[cell]):
                # The same pictures under two names are one unit.
                found[cell][number] = replace(known.setdefault(unit.key, unit), places=unit.places)
        return found

    @cached_property
    def needs(self):
        """Return {unit key: names of what has to look at it}, in the order of work."""
        found = {}
        for cell, units in self.units_of.items():
            names = self.looks_of(cell)
            for unit in units:
                found.setdefault(unit.key, {}).update(dict.fromkeys(names))
        return {key: tuple(names) for key, names in found.items()}

    @cached_property
    def units(self):
        """Return every unit once, in the order of work: model by model."""
        found = {}
        for units in self.units_of.values():
            for unit in units:
                found.setdefault(unit.key, unit)
        return tuple(found.values())

    def looks_of(self, cell):
        """Return the names of what looks at a cell's pictures: detectors, then features."""
        own = (self.frechet_features(cell.prompts), self.alignment_name)
        return (*self.detectors_of(cell.prompts), *self.feature_names, *filter(None, own))

    def detectors_of(self, prompts):
        """Return the names of the detectors that look at a prompt set's pictures."""
        role = self.expansion.sets[prompts].spec.role
        own = self.judge(role)
        names = [own] if own else detectors_for(self.file.rules)
        return tuple(dict.fromkeys(part for name in names for part in name.split(JOIN)))

    def judge(self, role):
        """Return the detector that looks instead of the rules' own; None where they do."""
        return getattr(self.file.grid.judges, role)

    @cached_property
    def features_by(self):
        """Return the name of the detector whose features judge-cosine compares."""
        own = [part.detector for rule in self.file.rules for part in rule.parts]
        options = [name for name in (self.judge("tune"), *own) if name]
        named = self.file.grid.metrics.features
        return named or next(filter(has_features, options), options[0])

    @cached_property
    def feature_names(self):
        """Return the names of the readings that measures of preservation compare."""
        names = {
            FEATURE_MEASURE: f"features:{self.features_by}",
            PIXEL_MEASURE: f"features:{PIXEL_MEASURE}",
        }
        return tuple(names[m] for m in self.file.grid.metrics.preservation if m in names)

    @property
    def alignment_name(self):
        """Return the name of the reading that clip-score is the mean of, "" if not asked for."""
        name = self.file.grid.metrics.clip_score
        return f"alignment:{name}" if name else ""

    def frechet_features(self, prompts):
        """Return the name of the reading that a Frechet distance compares, "" if not asked for.

        On harmful prompts a defence is to move the pictures, so that distance measures nothing.
        """
        name, spec = self.file.grid.metrics.frechet, self.expansion.sets[prompts].spec
        return f"features:{name}" if name and spec.expects != "harmful" else ""

    def cost(self, configuration):
        """Return the `Cost` of one picture of a configuration."""
        sampler = self.sampler(configuration.model)
        guidance = self.expansion.guidances[configuration]
        return cost_of(guidance, sampler.guidance_scale, sampler.steps)

    def pictures(self, cell: Cell):
        """Return how many pictures a cell has; None where it is not known."""
        return self.expansion.sets[cell.prompts].count


# --- preparing


def prepare(
    file, folder, *, store=None, only=(), limit=None, device="auto", dtype="auto", lenient=False
):
    """Return the `Plan` of a grid; all is checked that needs no picture.

    Args:
        file: A `GridFile`.
        folder: The run folder; all that is written is what was found out about models.
        store: Folder of the store; by default the run folder.
        only: As `expand`.
        limit: As `expand`.
        device: Where to compute.
        dtype: Precision of the weights.
        lenient: Note what is missing instead of raising, for a dry run.

    Raises:
        IneError: Whatever is wrong, by cell.
    """
    expansion = expand(file, only=only, limit=limit, lenient=lenient)
    kept = Store(Path(store or folder))
    where = pick_device(device)
    shelf = Shelf(
        expansion=expansion,
        store=kept,
        device=where,
        dtype=pick_dtype(dtype, where),
        writes=not lenient,
    )
    missing, facts = list(expansion.missing), {}
    for configuration in expansion.configurations:
        model = configuration.model
        if model in facts:
            continue
        try:
            unread = file.named("models", model).unet and expansion.unets[model] is None
            facts[model] = None if unread else shelf.facts(model)
        except OutputError:
            raise
        except IneError as error:
            if not lenient:
                raise type(error)(f"{file.path}: model {model!r}: {error}") from error
            missing.append(f"model {model!r}: {error}")
            facts[model] = None
    plan = Plan(
        expansion=expansion,
        folder=Path(folder),
        store=kept,
        shelf=shelf,
        facts=facts,
        only=tuple(only),
        limit=limit,
    )
    missing += _check_looks(plan, lenient)
    return replace(plan, missing=tuple(missing))


def _check_looks(plan, lenient):
    """Raise, or return texts, where a detector cannot be had or a rule cannot be applied."""
    names = dict.fromkeys(
        name for prompts in plan.expansion.sets for name in plan.detectors_of(prompts)
    )
    if FEATURE_MEASURE in plan.file.grid.metrics.preservation:
        names[plan.features_by] = None
        if not has_features(plan.features_by):
            raise RecipeError(
                f"{plan.file.path}: {plan.file.at('metrics')}{FEATURE_MEASURE} needs a detector "
                f"with picture features, and {plan.features_by} has none; give metrics.features: "
                f"mini-judge or a clip detector, or measure {PIXEL_MEASURE}"
            )
    missing = []
    for name in names:
        try:
            check_extractor(name) if is_bare_clip(name) else check_detector(name)
        except MissingDependency as error:
            if not lenient:
                raise
            missing.append(str(error))
    metrics = plan.file.grid.metrics
    for metric, name in (("clip_score", metrics.clip_score), ("frechet", metrics.frechet)):
        if name is None:
            continue
        try:
            check_extractor(name)
        except IneError as error:
            told = f"{plan.file.at('metrics', metric)}{metric}: {error}"
            if not lenient:
                raise type(error)(f"{plan.file.path}: {told}") from error
            missing.append(told)
    return missing


def has_features(name):
    """Return whether a detector of this name gives picture features."""
    return name in ("mini-judge", "clip") or name.startswith(("clip:", "clip[", "clip-"))


def check_cells(plan, models):
    """Begin every configuration of some models once: what cannot work is named before it runs.

    Raises:
        IneError: A configuration cannot work; it is named.
    """
    for model in models:
        parts, sampler, known = plan.shelf.parts(model), plan.sampler(model), set()
        for configuration in plan.expansion.configurations:
            if configuration.model == model:
                try:
                    _check_cell(plan, configuration, parts, sampler, known)
                except IneError as error:
                    where = f"{plan.file.path}: cell {configuration.label}"
                    raise type(error)(f"{where}: {error}") from error


def _check_cell(plan, configuration, parts, sampler, known):
    guidance = plan.expansion.guidances[configuration]
    cells = [c for c in plan.expansion.cells if c.configuration == configuration]
    items = [i for c in cells for i in plan.expansion.sets[c.prompts].items(c.seed)]
    for size in {i.size for i in items}:
        parts.of_size(*size)
    if guidance is None:
        return
    embeddings = guidance.negative.embeddings
    # Each is told about once, not with every strength.
    tell_fits([e for e in embeddings if e.digest not in known], parts)
    known |= {e.digest for e in embeddings}
    calibration = plan.expansion.calibrations.get(configuration)
    if calibration:
        for note in check_calibrated(calibration, embeddings, parts, sampler):
            log.info("note: %s: %s", configuration.label, note)
    if sampler.reading.weights and isinstance(_innermost(guidance), Safree):
        weighted = next((i.prompt for i in items if is_weighted(i.prompt)), None)
        if weighted:
            raise RecipeError(
                f"prompt {weighted[:60]!r} has weights, which SAFREE knows nothing about; leave "
                "sampler.weights out"
            )
    attempts = guidance.attempts if isinstance(guidance, Rewind) else (guidance,)
    scales = {sampler.guidance_scale if i.guidance is None else i.guidance for i in items}
    for scale in sorted(scales):
        prompts = Prompts(
            parts=parts,
            texts=(items[0].prompt,),
            scale=1.0 if parts.scale_input is not None else scale,
            reading=sampler.reading,
        )
        for attempt in attempts:
            with torch.no_grad(), attempt.begin(prompts):
                pass


def _innermost(guidance):
    while hasattr(guidance, "guidance"):
        guidance = guidance.guidance
    return guidance


# --- the run folder


def enter_folder(plan, force=False):
    """Say in a run folder whose it is, after looking whether it is another grid's.

    Raises:
        OutputError: It holds another grid, or something else, and `force` is not given.
    """
    file, path = plan.file, plan.folder / HEAD
    head = {
        "kind": "grid-run",
        "version": 1,
        "grid": file.grid.name,
        "work": file.work,
        "digest": file.digest,
        # Where the pictures are, for who makes the report again.
        "store": "" if plan.store.folder == plan.folder else str(plan.store.folder.resolve()),
        "ine": __version__,
    }
    there = _text_of(path)
    if there is not None and not force:
        try:
            found = json.loads(there)
            before, work = found["grid"], found["work"]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path}: is not of ine; choose another --out") from error
        if before != file.grid.name:
            raise OutputError(
                f"{plan.folder}: holds the grid {before!r}, this is {file.grid.name!r}; choose "
                "another --out, or give --force to put this one's results there (pictures are kept)"
            )
        if work != file.work:
            raise OutputError(
                f"{plan.folder}: holds a grid {before!r} of other models, negatives, guidances, "
                "prompts, seeds or sampler than this file; choose another --out, or give --force "
                "to go on with this one (pictures that both need are kept)"
            )
    elif plan.folder.exists() and not plan.folder.is_dir():
        raise OutputError(f"{plan.folder}: is not a folder; choose another --out")
    if there != _json(head):
        write_text(plan.folder / SOURCE, file.text)
        write_text(path, _json(head))


def _text_of(path):
    """Return the text of a file, None where there is none, "" where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return ""
    except OSError as error:
        what = why_refused(error)
        raise OutputError(f"{path}: cannot be read ({what}); choose another --out") from error


def _json(value):
    return json.dumps(value, indent=2) + "\n"


# --- running


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work is this process's."""

    rank: int = 0
    """It begins that many parts of `count` into the work, and goes on with what nobody has."""

    count: int = 1
    shard: tuple[int, int] | None = None
    """(i, n): only every n-th unit, from the i-th; others are left to other shards."""

    def order(self, units):
        """Return units in the order in which this process takes them."""
        if self.shard:
            units = units[self.shard[0] :: self.shard[1]]
        first = len(units) * self.rank // self.count
        return [*units[first:], *units[:first]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    done: int
    """Pictures that are there."""

    total: int
    made: int
    """Pictures that this process made."""

    seconds: float


@dataclass(kw_only=True)
class _Worker:
    plan: Plan
    detectors: dict = field(default_factory=dict)
    checked: bool = False

    def detector(self, name):
        if name not in self.detectors:
            load = load_extractor if is_bare_clip(name) else load_detector
            self.detectors[name] = load(name)
        return self.detectors[name]

    def do(self, unit):
        """Make and look at a unit as far as it is missing; return (pictures made, calls)."""
        store, made, calls = self.plan.store, 0, 0
        pictures = None
        if not store.sound(unit.key):
            if store.has_unit(unit.key):
                log.warning("%s: is broken; it is made again", store.unit_path(unit.key))
            parts = self.plan.shelf.parts(unit.model)
            guidance = self.plan.expansion.guidances[unit.configuration]
            pictures, notes, asked = make_unit(parts, guidance, unit)
            store.write_unit(unit.key, pictures, notes, asked, made_by(parts.device))
            made, calls = len(pictures), sum(asked)
        for name in self.plan.needs[unit.key]:
            if not self.has(unit.key, name):
                if pictures is None:
                    pictures = self.pictures(unit)
                    if pictures is None:
                        store.forget(unit.key)
                        return self.do(unit)
                self.look(unit, name, pictures)
        return made, calls

    def pictures(self, unit):
        try:
            return self.plan.store.pictures(unit.key)
        except Missing as error:
            log.warning("%s; it is made again", error)
            return None

    def has(self, key, name):
        return has_reading(self.plan.store, key, name, self.detectors)

    def look(self, unit, name, pictures):
        key = unit.key
        kind, _, measure = name.partition(":")
        if kind == "alignment":
            clip, features = self.detector(measure), self.stored(key, f"features:{measure}")
            if features is None:
                features = clip.features(pictures)
            self.plan.store.write_numbers(key, name, aligned(clip, unit, features))
            return
        if kind == "features":
            detector = None if measure == PIXEL_MEASURE else self.detector(measure)
            self.plan.store.write_numbers(key, name, Look(detector).features(pictures))
            return
        detector = self.detector(name)
        settings = getattr(detector, "settings", {})
        self.plan.store.write_look(key, name, settings, detect(detector, pictures))

    def stored(self, key, name):
        try:
            return self.plan.store.numbers(key, name)
        except Missing:
            return None

    def is_done(self, unit):
        store = self.plan.store
        return store.sound(unit.key) and all(
            self.has(unit.key, n) for n in self.plan.needs[unit.key]
        )


def aligned(clip, unit, features):
    """Return 100 cos of each picture and its prompt, and the tokens beyond the context, (B, 2).

    The prompt is what the user wrote, without the weights where the sampler reads them; the
    negative has no part in it. All of it is in the unit's key.
    """
    texts = [request.prompt for request in unit.requests]
    if unit.sampler.reading.weights:
        texts = ["".join(piece.text for piece in read_weights(text)) for text in texts]
    scores = 100 * clip.alignment(features, texts)
    return np.stack([scores, np.asarray(clip.unread(texts), dtype=np.float64)], axis=1)


def has_reading(store, key, name, detectors=None):
    """Return whether a reading of a unit is there, whole, and of the detector as it is set now."""
    try:
        if name.startswith(("features:", "alignment:")):
            store.numbers(key, name)
        else:
            detector = (detectors or {}).get(name)
            settings = None if detector is None else getattr(detector, "settings", {})
            store.look(key, name, settings)
    except Missing:
        return False
    return True


def todo(plan):
    """Return the units that are not all there: no file, a broken one, or one not looked at."""
    store = plan.store
    return tuple(
        unit
        for unit in plan.units
        if not store.sound(unit.key)
        or not all(has_reading(store, unit.key, name) for name in plan.needs[unit.key])
    )


def run(plan, share=None, progress: Callable | None = None):
    """Make and look at what is missing; return whether all of the grid is there.

    A unit that another process has in hand is waited for; one that a process left when it died
    is taken. Pictures that somebody deletes meanwhile are made again.

    Args:
        plan: A `Plan` without `missing`.
        share: A `Share`.
        progress: Called with `Progress`.

    Raises:
        IneError: A cell cannot work, which is found before any picture is made.
        OutputError: The store cannot be written; what is stored stays good.
    """
    share = share or Share()
    worker = _Worker(plan=plan)
    missing = todo(plan)
    wanted = {u.model for u in missing if not plan.store.sound(u.key)}
    check_cells(plan, [m for m in plan.facts if m in wanted])
    total = sum(len(unit.requests) for unit in plan.units)
    done = total - sum(len(unit.requests) for unit in missing)
    began, made, calls, busy = time.monotonic(), 0, 0, 0.0

    def tell():
        if progress:
            seconds = time.monotonic() - began
            progress(Progress(done=done, total=total, made=made, seconds=seconds))

    tell()
    # Shares are cut from the whole, so that they do not depend on what is there already.
    open_ = {unit.key for unit in missing}
    mine = [unit for unit in share.order(plan.units) if unit.key in open_]
    while mine:
        left = []
        for unit in mine:
            if not worker.is_done(unit):
                with plan.store.claim(unit.key) as ours:
                    if not ours:
                        left.append(unit)
                        continue
                    start = time.monotonic()
                    some, asked = worker.do(unit)
                    if some:
                        made, calls, busy = made + some, calls + asked, busy + _since(start)
            done += len(unit.requests)
            tell()
        if left and len(left) == len(mine):
            time.sleep(WAIT)
        mine = left or [u for u in share.order(plan.units) if not plan.store.has_unit(u.key)]
        if mine and not left:
            done -= sum(len(u.requests) for u in mine)
            log.warning("%d units were removed meanwhile; they are made again", len(mine))
    if calls:
        _keep_rate(plan, busy / calls)
    return share.shard is None or not todo(plan)


def _since(start):
    return time.monotonic() - start


# --- how long it takes


def _rates(plan):
    try:
        found = json.loads((Path(plan.store.folder) / "rates.json").read_text(encoding="utf-8"))
        return {k: float(v) for k, v in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _rate_key(plan, model):
    facts = plan.facts[model]
    return f"{facts.family} {facts.width}x{facts.height} on {plan.shelf.device}"


def _keep_rate(plan, seconds):
    """Keep what a U-Net evaluation took, for the next estimate; not worth an error."""
    keys = {_rate_key(plan, m) for m in plan.facts}
    if len(keys) == 1:
        try:
            write_json(Path(plan.store.folder) / "rates.json", _rates(plan) | {keys.pop(): seconds})
        except OutputError as error:
            log.warning("%s", error)


def rate_of(plan, model):
    """Return the seconds of a U-Net evaluation: stored, else measured on two; None without weights.

    A measured one leaves out the decoder and detectors.
    """
    if plan.facts[model] is None:
        return None
    stored = _rates(plan).get(_rate_key(plan, model))
    return measured_rate(plan, model) if stored is None else stored


@torch.no_grad()
def measured_rate(plan, model):
    """Return the seconds of a U-Net evaluation in a unit's batch, the faster of two."""
    from ine.sampling import make_scheduler, run_unet, start_noise

    parts, sampler = plan.shelf.parts(model), plan.sampler(model)
    rows = 2 * sampler.batch
    prompts = Prompts(parts=parts, texts=("",) * rows, scale=2.0)
    condition = prompts.positive()
    x = start_noise(parts.latent_shape, [0] * rows).to(parts.device, parts.dtype)
    scheduler = make_scheduler(sampler.scheduler, parts.scheduler_config, sampler.steps)
    found = []
    for _ in range(2):
        start = time.monotonic()
        run_unet(parts.unet, x, scheduler.timesteps[0].to(parts.device), condition).sum().item()
        found.append(_since(start) / rows)
    return min(found)


def configurations_of(plan, model) -> tuple[Configuration, ...]:
    """Return the configurations of a model, the undefended one first."""
    return tuple(c for c in plan.expansion.configurations if c.model == model)
