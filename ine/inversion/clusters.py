"""A concept with several faces: its pictures in groups, one inversion for each.

The members of a concept may look nothing alike, and one embedding then stands for a mixture of
them. Here the concept pictures are parted by what the judge sees in them, and every part gets an
embedding of its own, for a negative that is matched per picture (`ine.guidance.negative.Matched`).

Shape letters: P pictures, F features, K clusters.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from ine.embedding import write_embedding
from ine.errors import IneError, PicturesError, RecipeError
from ine.files import sha256_of, write_json
from ine.inversion.run import prepare
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.runtime import seed_for
from ine.sampling import decode_latents

log = logging.getLogger("ine")

SMALLEST = 4
"""Pictures that a cluster needs: vectors learned from fewer repeat them, and are no concept."""

STARTS = 16
"""k-means is begun this often; the tightest result is kept."""

ROUNDS = 100


@dataclass(frozen=True, kw_only=True)
class ClusterRun:
    """One embedding of a clustered inversion."""

    letter: str
    """Its place in the alphabet, the largest cluster being "a"."""

    size: int
    out: Path
    embedding: object
    """`ConceptEmbedding`."""

    result: object
    """`Inversion`."""


def run_clustered(
    base, unlearned, recipe, options, clusters, detector=None, on_pictures=None, on_step=None
):
    """Make the concept pictures once, part them, invert each part, and write the embeddings.

    For `options.out` NAME.safetensors the files are NAME-a.safetensors, NAME-b.safetensors, ...,
    the triggers likewise. They are written when all inversions are done; until then each has its
    state in the run folder, so an interrupted run goes on where it stopped and ends byte-equal.

    Args:
        base: Parts of the base model.
        unlearned: Parts that are inverted.
        recipe: A `ConceptRecipe`.
        options: `RunOptions`; `out` and `trigger` without the letter.
        clusters: K, 1 to 26.
        detector: The detector of the recipe's rule, with `features`; loaded when not given.
        on_pictures: Called with (tried, kept, wanted).
        on_step: Called with (number of the cluster from 0, `Progress`).

    Returns:
        (list of `ClusterRun`, largest first, and the summary that `--json` prints).

    Raises:
        IneError: K is out of range.
        RecipeError: The detector of the recipe's rule gives no image features.
        PicturesError: Too few pictures, or a cluster is empty or too small.
    """
    targets = cluster_targets(options, clusters)
    if not options.images:
        check_count(recipe.pictures.count, clusters)
    rule = find_rule(recipe.pictures.rule)
    detector = detector or load_detector(rule.detector)
    if not hasattr(detector, "features"):
        raise RecipeError(
            f"clusters: detector {rule.detector!r} of rule {rule.name} gives scores but no image "
            "features to part pictures by; give pictures.rule of a detector that does, such as a "
            "CLIP judge, or part the pictures into folders yourself and run `ine invert --images` "
            "on each"
        )
    run = prepare(base, unlearned, recipe, options, targets, detector, on_pictures)
    labels = labels_of(run, clusters)
    parts = [[i for i, label in enumerate(labels) if label == n] for n in range(clusters)]
    log.info("clusters of %s pictures", ", ".join(str(len(part)) for part in parts))
    made = []
    for number, ((trigger, out), part) in enumerate(zip(targets.items(), parts, strict=True)):
        letter = ascii_lowercase[number]
        result = run.invert(
            run.pictures.of(part),
            trigger,
            f"state-{letter}-of-{clusters}.safetensors",
            (lambda p, n=number: on_step(n, p)) if on_step else None,
        )
        about = {"ine.cluster": f"{letter} of {clusters}", "ine.cluster_size": len(part)}
        embedding = run.embedding(result, trigger, about)
        made.append(
            ClusterRun(letter=letter, size=len(part), out=out, embedding=embedding, result=result)
        )
    for one in made:
        write_embedding(one.embedding, one.out, force=options.force)
    summary = {
        "clusters": [
            {"size": one.size, **run.summary(one.out, one.embedding, one.result)} for one in made
        ],
        "pictures": run.counts,
    }
    run.finish(summary)
    return made, summary


def cluster_targets(options, clusters):
    """Return {trigger: file} of the embeddings, in the order of their letters.

    Raises:
        IneError: `clusters` is not 1 to 26.
    """
    if not 1 <= clusters <= len(ascii_lowercase):
        raise IneError(f"clusters is {clusters}; give 1 to {len(ascii_lowercase)}, one letter each")
    out = Path(options.out)
    return {
        f"{options.trigger}-{letter}": out.with_name(f"{out.stem}-{letter}{out.suffix}")
        for letter in ascii_lowercase[:clusters]
    }


def check_count(pictures, clusters):
    """Raise `PicturesError` where so many pictures cannot make so many clusters."""
    if pictures < clusters * SMALLEST:
        raise PicturesError(
            f"{clusters} clusters of {pictures} pictures: a cluster needs at least {SMALLEST}; "
            f"give {max(1, pictures // SMALLEST)} clusters or fewer, or more pictures "
            "(pictures.count, --images)"
        )


def labels_of(run, clusters):
    """Return the cluster of every picture of a `Prepared` run; read back where it was kept.

    Kept, because features on another machine differ in the last bits, and a picture between two
    clusters must not change sides in a run that is resumed.
    """
    about = repr((run.key, run.rule.detector, clusters, run.pictures.names))
    key, path = sha256_of(about.encode())[:16], run.options.folder / "clusters.json"
    try:
        found = json.loads(path.read_text())
        if found["key"] == key:
            return found["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    check_count(run.pictures.count, clusters)
    features = features_of(run.base, run.pictures, run.detector, run.recipe.pictures.batch)
    labels = k_means(features, clusters, run.options.seed)
    sizes = np.bincount(labels, minlength=clusters)
    if sizes.min() < SMALLEST:
        raise PicturesError(
            f"{clusters} clusters of {run.pictures.count} pictures have "
            f"{', '.join(map(str, sizes))} members, and a cluster needs at least {SMALLEST}; give "
            "fewer clusters, or more pictures (pictures.count, --images)"
        )
    write_json(path, {"key": key, "labels": labels.tolist()})
    return labels.tolist()


def features_of(base, pictures, detector, batch):
    """Return the detector's features of concept pictures, (P, F); they exist as latents only."""
    found = []
    for first in range(0, pictures.count, batch):
        latents = pictures.mean[first : first + batch].to(base.device, base.dtype)
        found.append(detector.features(decode_latents(base, latents)))
    return np.concatenate(found)


def k_means(features, clusters, seed=0):
    """Return the cluster of every picture, (P,) whole numbers, cluster 0 being the largest.

        minimise  sum_p || f_p - m_{c(p)} ||^2

    Lloyd 1982 from starts after Arthur and Vassilvitskii 2007 (k-means++); of `STARTS` results
    the tightest is kept. Of clusters of one size, the one with the earlier picture comes first.
    A cluster is empty only where there are fewer different pictures than clusters.

    Args:
        features: (P, F), P >= K.
        clusters: K, at least 1.
        seed: Where all randomness comes from.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not 1 <= clusters <= len(features):
        raise ValueError(f"features {features.shape} cannot be parted into {clusters} clusters")
    rng = np.random.default_rng(seed_for(seed, "clusters"))
    runs = [_lloyd(features, _spread(features, clusters, rng)) for _ in range(STARTS)]
    # Starts often meet in one result; sums in another order must not choose between its namings.
    labels, _ = min(runs, key=lambda run: round(run[1], 9))
    sizes = np.bincount(labels, minlength=clusters)
    first = [int(np.argmax(labels == n)) for n in range(clusters)]
    order = sorted(range(clusters), key=lambda n: (-sizes[n], first[n]))
    return np.argsort(order)[labels]


def _distances(features, centres):
    """Return squared distances, (P, K)."""
    return np.stack([((features - centre) ** 2).sum(1) for centre in centres], axis=1)


def _spread(features, clusters, rng):
    """Return K starting centres, each drawn by its squared distance from those before it."""
    chosen = [int(rng.integers(len(features)))]
    while len(chosen) < clusters:
        weights = _distances(features, features[chosen]).min(1)
        if weights.sum() == 0:
            chosen.append(chosen[0])
        else:
            chosen.append(int(rng.choice(len(features), p=weights / weights.sum())))
    return features[chosen]


def _lloyd(features, centres):
    """Return (labels, sum of squared distances) where nothing moves any more."""
    labels = None
    for _ in range(ROUNDS):
        distances = _distances(features, centres)
        new = distances.argmin(1)
        if labels is not None and (new == labels).all():
            break
        labels = new
        # An empty cluster starts again at the picture that is worst represented.
        lonely = iter(np.argsort(-distances.min(1), kind="stable"))
        centres = np.stack(
            [
                features[labels == n].mean(0) if (labels == n).any() else features[next(lonely)]
                for n in range(len(centres))
            ]
        )
    return labels, float(_distances(features, centres)[np.arange(len(labels)), labels].sum())
