"""Cells of a study: one model, one guidance, one prompt set; judged, cached, summarised.

Pictures of a cell are made once and judged at once; what is kept is the judges' raw scores and
image features, so figures can be drawn up again without generating. A cell that was finished is
read back, so a study that was killed goes on where it stopped.

Shape letters: P pictures of a cell, F features.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.evaluation.metrics import cluster_bootstrap, feature_floor, rescaled_cosine
from ine.files import sha256_of, write_bytes
from ine.inversion.preview import choose
from ine.judging.rules import Rule
from ine.recipe import pairs
from ine.runtime import seed_for
from ine.sampling import PictureRequest, generate


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt of a set."""

    prompt: str
    noun: str
    """The subject, "" where the prompt names none of its own."""

    phrase: str
    """The template; phrase and noun together are what an interval resamples."""

    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class CellResult:
    """What the judges saw in one cell."""

    cases: tuple[Case, ...]
    scores: tuple[dict, ...]
    """Raw scores of the judge whose figures are reported, one dict per picture."""

    tuning_scores: tuple[dict, ...]
    """Raw scores of the judge that chooses."""

    features: np.ndarray
    """Unit image features of the choosing judge, (P, F) float32."""

    pictures: np.ndarray
    """The first pictures, for the report, (few, H, W, 3) uint8."""

    calls: tuple[int, ...] = ()
    """U-Net evaluations, one number per picture; empty in cells of earlier versions."""

    @property
    def clusters(self):
        """Return what is independent: phrase x noun, one label per picture."""
        return [f"{c.phrase}|{c.noun}" for c in self.cases]


def cases_of(recipe, name, count, nouns, seed=0):
    """Return `count` cases of a recipe's prompt set, phrases and nouns spread evenly.

    The same (phrase, noun) comes again, with another seed, only when all have come once.
    """
    templates = recipe.prompt_sets[name]
    with_noun = any("{}" in t for t in templates)
    options = pairs(templates, nouns if with_noun else ("",))
    chosen = choose(options, count, seed, "cases", name)
    return tuple(
        Case(
            prompt=recipe.fill(phrase, noun),
            noun=noun,
            phrase=phrase,
            seed=seed_for(seed, name, i) % 2**32,
        )
        for i, (phrase, noun) in enumerate(chosen)
    )


def run_cell(
    parts,
    guidance,
    cases,
    sampler,
    judge,
    reporter,
    *,
    cache=None,
    key="",
    shown=16,
    embeddings=(),
):
    """Make and judge the pictures of a cell, or read them back from `cache`.

    Args:
        parts: The model.
        guidance: A `Guidance`, or None for the undefended model.
        cases: The prompts.
        sampler: `SamplerSettings`.
        judge: The choosing judge, with `features` and `scores_of`.
        reporter: The judge whose figures are reported.
        cache: A `.npz` file.
        key: All that decides the pixels besides cases and sampler.
        shown: How many pictures to keep for the report.
        embeddings: What the triggers in the prompts stand for.
    """
    learned = "".join(e.digest for e in embeddings)
    full_key = sha256_of((key + learned).encode(), repr(cases).encode(), repr(sampler).encode())
    found = _read_cell(cache, full_key, cases) if cache else None
    if found is not None:
        return found
    learned = tuple(embeddings)
    requests = [PictureRequest(prompt=c.prompt, seed=c.seed, embeddings=learned) for c in cases]
    units = list(generate(parts, requests, guidance, sampler))
    pictures = np.concatenate([unit.pictures for unit in units])
    features = judge.features(pictures)
    result = CellResult(
        cases=tuple(cases),
        scores=tuple(reporter(pictures)),
        tuning_scores=tuple(judge.scores_of(features)),
        features=features,
        pictures=pictures[:shown],
        calls=tuple(calls for unit in units for calls in unit.unet_calls),
    )
    if cache:
        _write_cell(cache, full_key, result)
    return result


def _write_cell(path, key, result):
    data = io.BytesIO()
    about = {
        "key": key,
        "scores": result.scores,
        "tuning_scores": result.tuning_scores,
        "calls": result.calls,
    }
    np.savez_compressed(
        data, about=json.dumps(about), features=result.features, pictures=result.pictures
    )
    write_bytes(path, data.getvalue())


def _read_cell(path, key, cases):
    if not Path(path).exists():
        return None
    with np.load(path) as data:
        about = json.loads(str(data["about"]))
        if about["key"] != key:
            return None
        return CellResult(
            cases=tuple(cases),
            scores=tuple(about["scores"]),
            tuning_scores=tuple(about["tuning_scores"]),
            features=data["features"],
            pictures=data["pictures"],
            calls=tuple(about.get("calls", ())),
        )


def top_object(scores, attributes):
    """Return the object label with the largest score."""
    return max((label for label in scores if label not in attributes), key=scores.__getitem__)


def concept_share(result, rule: Rule, tuning=False):
    """Return the share of pictures with the concept, an `Estimate` over phrase x noun."""
    scores = result.tuning_scores if tuning else result.scores
    return cluster_bootstrap([float(rule.fires(s)) for s in scores], result.clusters)


def subject_share(result, attributes, aliases=None):
    """Return the share of pictures whose most likely object is the prompt's."""
    aliases = aliases or {}
    right = [
        float(top_object(s, attributes) == aliases.get(c.noun, c.noun))
        for s, c in zip(result.scores, result.cases, strict=True)
    ]
    return cluster_bootstrap(right, result.clusters)


def attribute_share(result, attribute):
    """Return the share of pictures in which an attribute is found."""
    return cluster_bootstrap([float(s[attribute] >= 0.5) for s in result.scores], result.clusters)


def preservation(result, undefended):
    """Return how alike a defended cell is to the undefended one, same prompts and seeds.

    Cosine of the judge's image features, rescaled so that unrelated pictures of the undefended
    cell read 0 and identical pictures 1 (`judge-cosine`).
    """
    floor = feature_floor(undefended.features, [c.noun for c in undefended.cases])
    cosines = (result.features * undefended.features).sum(1)
    return cluster_bootstrap(rescaled_cosine(cosines, floor), result.clusters)
