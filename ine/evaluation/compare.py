"""`ine compare`: the same prompts and seeds under every method, and what each strength costs.

Two looks at one choice. Pictures: a prompt per row, a method with words or with the embedding per
column. The frontier: how much of the concept a strength leaves on prompts that imply it, against
how much of benign pictures it keeps. Both are for choosing, so they use the judge and the prompts
that are set aside for choices; what is reported elsewhere uses others.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ine.embedding import tell_fits
from ine.errors import EmbeddingError, IneError, PromptError, RecipeError, did_you_mean
from ine.evaluation.defences import UNDEFENDED, Defence
from ine.evaluation.frontier import Curve, Point, frontier_svg
from ine.evaluation.report import (
    Cell,
    Drawing,
    PictureGrid,
    Report,
    Section,
    Table,
    decimal,
    write_report,
)
from ine.evaluation.study import Case, cases_of, concept_share, preservation, run_cell
from ine.files import sha256_of
from ine.guidance.negative import Matched, Negative
from ine.guidance.protocol import Prompts
from ine.guidance.rewind import Rewind
from ine.guidance.table import METHODS, Method, describe, find_method
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.models.fingerprint import exact_digest
from ine.runtime import library_versions

log = logging.getLogger("ine")

TUNING = "implying_tuning"
BENIGN = "benign"
KEPT = 0.95
"""Preservation that the lead asks for when it names the best."""

PIXEL_SIDE = 16


USUAL = ("cfg", "additive", "sld", "safree")


def read_strengths(given, methods):
    """Return {method: strengths} from texts like "1,2,3" (all methods) and "sld=10,5000" (one).

    Raises:
        IneError: An unknown method, one that has no strength or is not compared, or a number
            that is negative or none.
    """
    found = {}
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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is compared."""

    methods: tuple[str, ...] = USUAL
    strengths: dict | None = None
    """{method: strengths} where they are not the table's; see `read_strengths`."""

    prompts: tuple[str, ...] = ()
    """Rows of the pictures; without any, the first prompts of both sets."""

    implying: str | tuple[str, ...] = TUNING
    """Name of a prompt set of the recipe, or prompts: where the concept is to be kept out."""

    benign: str | tuple[str, ...] = BENIGN
    """Name of a prompt set, or prompts: what is to stay as it is."""

    count: int = 48
    """Pictures per point and prompt set."""

    seed: int = 0

    def sweep(self, method):
        """Return the strengths of a method, (None,) where it has none."""
        return (self.strengths or {}).get(method.name) or method.strengths or (None,)

    def shown(self, method, recipe):
        """Return the strength of a method's pictures: of those swept, the nearest to the usual."""
        usual = recipe.strength if method.shown is None else method.shown
        strengths = self.sweep(method)
        usual = strengths[len(strengths) // 2] if usual is None else usual
        return min(strengths, key=lambda s: abs(s - usual)) if strengths[0] is not None else None


class Look:
    """The judge as cells need it: scores of the rule's detector, and features of pictures.

    A detector without features lends those of small pictures: `PIXEL_SIDE` x `PIXEL_SIDE` grey
    means, less their own mean, as a unit vector. Crude, but it sees what moved.
    """

    def __init__(self, detector):
        self.detector = detector
        self.measure = "judge-cosine"
        if not hasattr(detector, "features"):
            self.measure = f"pixel-cosine@{PIXEL_SIDE}"

    def __call__(self, pictures):
        """Return {label: score} per picture."""
        return self.detector(pictures)

    def features(self, pictures):
        """Return unit features, (P, F)."""
        if hasattr(self.detector, "features"):
            return self.detector.features(pictures)
        grey = torch.from_numpy(np.asarray(pictures, dtype=np.float32).mean(3))[:, None]
        small = torch.nn.functional.interpolate(grey, (PIXEL_SIDE,) * 2, mode="area").flatten(1)
        # A flat picture has no direction; any fixed one will do.
        small = small - small.mean(1, keepdim=True)
        small[small.norm(dim=1) < 1e-6, 0] = 1.0
        return torch.nn.functional.normalize(small, dim=1).numpy()

    def scores_of(self, features):
        """Return nothing: what is chosen here is chosen by `__call__`."""
        return [{} for _ in features]


def set_cases(recipe, given, count, seed):
    """Return `count` cases of a named prompt set of a recipe, or of prompts.

    A prompt without a noun counts as a subject of its own. The recipe's tuning prompts stand in
    for `TUNING` where it has no such set.

    Raises:
        RecipeError: The recipe has no such set.
    """
    if not isinstance(given, str):
        recipe = recipe.model_copy(update={"prompt_sets": {"given": tuple(given)}})
        name, nouns = "given", ("",)
    else:
        name, nouns = given, recipe.prompt_nouns
        sets = dict(recipe.prompt_sets)
        if recipe.tuning and TUNING not in sets:
            sets[TUNING] = recipe.tuning.prompts
        if name not in sets:
            known = ", ".join(sets) or "none"
            raise RecipeError(
                f"recipe {recipe.name} has no prompt set {name!r}{did_you_mean(name, sets)}; it "
                f"has {known}; or give a text file of prompts"
            )
        if not any(nouns):
            nouns = recipe.tuning.nouns if recipe.tuning else recipe.pictures.nouns
        recipe = recipe.model_copy(update={"prompt_sets": sets})
    cases = cases_of(recipe, name, count, nouns, seed)
    return tuple(replace(c, noun=c.noun or c.prompt) for c in cases)


def negatives_of(recipe, embeddings):
    """Return [(label, negative, whether it is words)]: words, embeddings joined, and matched."""
    found = [("words", Negative(recipe.words.negative_text()), True)]
    label = "embedding" if len(embeddings) == 1 else f"{len(embeddings)} embeddings joined"
    found.append((label, Negative("", tuple(embeddings)), False))
    if len(embeddings) > 1:
        matched = Matched(tuple(Negative("", (e,)) for e in embeddings))
        found.append((f"{len(embeddings)} embeddings matched", matched, False))
    return found


def steers_nothing(negative, parts):
    """Return whether a negative's text states are those of the empty prompt."""
    prompts = Prompts(parts=parts, texts=("",), scale=1.0)
    with torch.no_grad():
        empty, states = prompts.encode([""]).states, negative.condition(prompts).states
    return bool((states - empty).norm() <= 1e-4 * empty.norm())


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method with one negative."""

    method: Method
    label: str
    """What the negative is."""

    negative: object
    in_words: bool
    gate: object = None
    """Where it opens a picture is begun anew, see `ine.guidance.rewind`; None steers all."""

    @property
    def name(self):
        """Return what legends call it."""
        return f"{self.method.name}, {self.label}"

    def defence(self, strength):
        """Return the `Defence` at a strength; None where the method has none."""
        slug = "".join(c if c.isalnum() else "-" for c in f"{self.method.name}-{self.label}")
        guidance = self.method.at(self.negative, strength)
        if self.gate:
            guidance = Rewind(guidance, self.gate)
        if strength is None:
            return Defence(name=slug, label=self.name, guidance=guidance)
        label = f"{self.method.name} s={strength:g}, {self.label}"
        return Defence(name=f"{slug}-s{strength:g}", label=label, guidance=guidance)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What all cells share."""

    parts: object
    weights: str
    """Digest of the model."""

    recipe: object
    rule: object
    look: Look
    sampler: object
    folder: Path
    choice: Choice
    entries: tuple[Entry, ...]

    def cell(self, defence, cases, shown=0):
        """Return the `CellResult` of a defence, from the cache where it is there."""
        key = f"{self.weights}|{self.rule.detector}|{self.look.measure}|"
        key += describe(defence.guidance)
        about = sha256_of(key.encode(), repr((cases, self.sampler, shown)).encode())[:16]
        return run_cell(
            self.parts,
            defence.guidance,
            cases,
            self.sampler,
            self.look,
            self.look,
            cache=self.folder / "cells" / f"{defence.name}-{about}.npz",
            key=key,
            shown=shown,
        )

    def cases(self, given):
        """Return the cases of a prompt set."""
        return set_cases(self.recipe, given, self.choice.count, self.choice.seed)

    def rows(self):
        """Return the cases whose pictures are shown."""
        choice = self.choice
        if choice.prompts:
            # The seed that `ine generate --seed` takes, so that a picture can be made again.
            return tuple(Case(prompt=p, noun=p, phrase=p, seed=choice.seed) for p in choice.prompts)
        return self.cases(choice.implying)[:4] + self.cases(choice.benign)[:4]

    def columns(self):
        """Return the defences whose pictures are shown."""
        shown = [e.defence(self.choice.shown(e.method, self.recipe)) for e in self.entries]
        return [UNDEFENDED, *shown]

    def total(self):
        """Return how many cells there are."""
        points = sum(len(self.choice.sweep(e.method)) for e in self.entries)
        return len(self.columns()) + 2 * (points + 1)


def entries_of(recipe, embeddings, methods, gate=None):
    """Return what is compared; with a gate, methods that have a strength come with it too."""
    found = []
    for method in methods:
        for label, negative, in_words in negatives_of(recipe, embeddings):
            given = {"method": method, "negative": negative, "in_words": in_words}
            found.append(Entry(label=label, **given))
            if gate and method.strengths:
                found.append(Entry(label=f"{label}, begun anew", gate=gate, **given))
    return tuple(found)


def compare(parts, recipe, embeddings, choice, sampler, folder, detector=None, gate=None):
    """Return the `Comparison` of a choice, all checked that needs no pictures.

    Args:
        parts: The model, unlearned.
        recipe: A `ConceptRecipe`; its words, rule and prompt sets are used.
        embeddings: At least one `ConceptEmbedding`.
        choice: A `Choice`.
        sampler: `SamplerSettings`.
        folder: Where cells and the report go; cells of the same settings are read back.
        detector: The detector of the recipe's rule; loaded when it is not given.
        gate: Methods with a strength are compared behind it too, pictures begun anew.

    Raises:
        EmbeddingError: There is no embedding, or one does not fit the model.
        IneError: A method is unknown.
        RecipeError: A prompt set is unknown.
        PromptError: Benign prompts are all alike.
    """
    methods = [find_method(name) for name in choice.methods]
    if not embeddings:
        raise EmbeddingError(
            "no embedding to compare: give --negative-embedding FILE; `ine invert` makes one"
        )
    tell_fits(embeddings, parts)
    for embedding in embeddings:
        if steers_nothing(Negative("", (embedding,)), parts):
            log.warning(
                "embedding %r equals the empty prompt on %s: as a negative it steers nothing",
                embedding.trigger,
                parts.name,
            )
    rule = find_rule(recipe.pictures.rule)
    found = Comparison(
        parts=parts,
        weights=exact_digest([parts.unet, parts.vae, *parts.text_encoders]),
        recipe=recipe,
        rule=rule,
        look=Look(detector or load_detector(rule.detector)),
        sampler=sampler,
        folder=Path(folder),
        choice=choice,
        entries=entries_of(recipe, embeddings, methods, gate),
    )
    found.cases(choice.implying)
    if len({c.noun for c in found.cases(choice.benign)}) < 2:
        raise PromptError(
            "benign prompts: all are alike, so nothing says how unlike unrelated pictures are; "
            "give at least two different ones, and a count of 2 or more"
        )
    return found


def run_compare(comparison, blur=None, on_cell=None):
    """Make and judge all pictures and write the report.

    Args:
        comparison: From `compare`.
        blur: As in `write_report`; by default "click", and "hide" for recipes about people.
        on_cell: Called with (cells done, label of the last one).

    Returns:
        (path of report.html, `Table` of the frontier).
    """
    done = []

    def cell(defence, cases, shown=0):
        result = comparison.cell(defence, cases, shown)
        done.append(defence)
        if on_cell:
            on_cell(len(done), defence.label)
        return result

    grid = picture_grid(comparison, cell)
    undefended, curves, table = frontier(comparison, cell)
    report = Report(
        title=f"ine compare: {comparison.recipe.name}",
        lead=lead_of(comparison, undefended, curves),
        sections=[
            Section("Pictures", grids=[grid]),
            Section(
                "Frontier",
                tables=[table],
                drawings=[
                    Drawing(
                        f"{comparison.recipe.name} left against preservation",
                        "One curve per method and negative, from its smallest strength to its "
                        "largest; dashed and hollow is a negative in words. Intervals are in "
                        "the table below.",
                        frontier_svg(curves, undefended, comparison.recipe.name),
                    )
                ],
            ),
        ],
        provenance=_provenance(comparison),
        next_steps=[
            (
                "Pictures of your own with one of these:",
                'ine generate --guidance additive --negative-strength 7 --prompt "..." '
                f"--negative-embedding {comparison.recipe.name}-neg.safetensors",
            )
        ],
    )
    blur = blur or ("hide" if comparison.recipe.people else "click")
    return write_report(report, comparison.folder, blur), table


def picture_grid(comparison, cell):
    """Return the pictures: a row per prompt, a column per defence, the same seeds.

    Args:
        comparison: From `compare`.
        cell: `comparison.cell`, or what stands around it.
    """
    rule, cases, columns = comparison.rule, comparison.rows(), comparison.columns()
    cells = [cell(d, cases, shown=len(cases)) for d in columns]

    def shown(result, i):
        score = rule.score(result.scores[i])
        return Cell(
            result.pictures[i],
            rule.fires(result.scores[i]),
            f"{comparison.recipe.name} {decimal(score)}, {result.calls[i]} calls",
        )

    return PictureGrid(
        "The same prompts and seeds",
        f"Under each picture: the score of rule {rule.name}, and how many U-Net evaluations the "
        "picture took.",
        [d.label for d in columns],
        [(case.prompt, [shown(found, i) for found in cells]) for i, case in enumerate(cases)],
    )


def frontier(comparison, cell):
    """Return (undefended share, curves, `Table`) over the sweep of strengths.

    Arguments as in `picture_grid`.
    """
    choice, concept = comparison.choice, comparison.recipe.name
    cases = [comparison.cases(name) for name in (choice.implying, choice.benign)]
    plain = [cell(UNDEFENDED, c) for c in cases]
    undefended = concept_share(plain[0], comparison.rule)
    rows = [["undefended", "", undefended, "1 by definition", _calls(*plain)]]
    curves = []
    for entry in comparison.entries:
        points = []
        for strength in choice.sweep(entry.method):
            found = [cell(entry.defence(strength), c) for c in cases]
            shown = "" if strength is None else f"{strength:g}"
            left = concept_share(found[0], comparison.rule)
            kept = preservation(found[1], plain[1])
            points.append(Point(label=shown, kept=kept, left=left))
            rows.append([entry.name, shown, left, kept, _calls(*found)])
        number = list(METHODS).index(entry.method.name)
        curves.append(
            Curve(name=entry.name, points=tuple(points), colour=number, hollow=entry.in_words)
        )
    table = Table(
        "The frontier in figures",
        f"{concept} left on prompts of {_told(choice.implying)}; preservation on those of "
        f"{_told(choice.benign)}.",
        ["guidance, negative", "strength", f"{concept} left", "preservation", "U-Net calls"],
        rows,
        notes=[
            f"Rule {comparison.rule.name}; {choice.count} pictures a point and set; 95% intervals "
            "by bootstrap over phrase x object.",
            f"Preservation ({comparison.look.measure}): cosine of picture features with the same "
            "seed undefended, rescaled so that unrelated pictures read 0.",
            "U-Net calls: evaluations a picture, mean.",
            "Meant for choosing, by the judge and the prompts of choices: report on others.",
        ],
        better={f"{concept} left": "low", "preservation": "high"},
    )
    return undefended, curves, table


def _told(given):
    return f"the set {given}" if isinstance(given, str) else f"{len(given)} prompts given"


def _calls(implying, benign):
    means = [f"{np.mean(cell.calls):.4g}" for cell in (implying, benign)]
    return means[0] if means[0] == means[1] else f"{means[0]} (benign {means[1]})"


def lead_of(comparison, undefended, curves):
    """Return one paragraph: what leaves least of those that preserve enough."""
    concept, parts = comparison.recipe.name, []
    for hollow, what in ((False, "the embedding"), (True, "words")):
        able = [
            (point.left.value, curve.name, point.label)
            for curve in curves
            for point in curve.points
            if curve.hollow == hollow and point.kept.value >= KEPT
        ]
        if not able:
            parts.append(f"nothing with {what} reaches it")
            continue
        left, name, label = min(able, key=lambda found: found[0])
        at = f" at strength {label}" if label else ""
        parts.append(f"with {what} the least is left by {name}{at} ({decimal(left)})")
    return (
        f"Undefended, {decimal(undefended.value)} of the pictures whose prompt implies {concept} "
        f"show it. At a preservation of at least {decimal(KEPT)}, {' and '.join(parts)}."
    )


def _provenance(comparison):
    recipe, choice = comparison.recipe, comparison.choice
    embeddings = comparison.entries[-1].negative.embeddings
    return {
        "model": f"{comparison.parts.name}, U-Net {comparison.parts.unet_name}",
        "embeddings": [f"{e.count} vectors, trigger {e.trigger}" for e in embeddings],
        "words": recipe.words.negative_text(),
        "recipe": f"{recipe.name} {recipe.hash}",
        "sampler": repr(comparison.sampler),
        "seed": str(choice.seed),
        "versions": library_versions(),
    }
