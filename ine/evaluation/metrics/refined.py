"""What a refinement did: prompts that were kept, looks, and answers that could not be used."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ine.detectors.rule import AnyOf, Rule
from ine.evaluation.metrics.base import Column, Metric, Sample, UnitView
from ine.evaluation.pictures import Columns
from ine.evaluation.result import Figure
from ine.evaluation.stats import cluster_bootstrap, interval_of_share
from ine.prompts.mini import category_of
from ine.refining.folder import looks_of
from ine.refining.rounds import Chain, chain_of

KEPT, UNCHANGED, NAMED = "kept", "kept unchanged", "rewrite names the subject"
UNUSABLE, LOOKS = "unusable answers", "looks"


class Refined(Metric):
    """Figures of configurations that refine; others have none."""

    columns = (
        Column(name="kept", kind=bool),
        Column(name="unusable", kind=bool),
        Column(name="looks", kind=int),
        Column(name="rewritten", kind=bool),
        Column(name="names_subject", kind=bool),
    )
    shown = (KEPT, UNCHANGED, NAMED, UNUSABLE, LOOKS)
    about = (
        "Kept: prompts whose last picture was called safe. Neither kept nor unusable is a picture "
        "that was generated after the last look, or whose prompt the model gave again. Kept "
        "unchanged: at the first look. Names the subject: of the rewritten ones, those with "
        "every noun of their row but the concept's own."
    )

    def read(self, view: UnitView) -> Columns:
        """Return how the prompt of each picture ended."""
        if view.unit.refinement is None:
            return {}
        pairs = zip(view.unit.requests, view.about.notes, strict=True)
        chains = [chain_of(request, note) for request, note in pairs]
        found: Columns = {
            ("kept", ""): np.array([chain.status == "kept" for chain in chains]),
            ("unusable", ""): np.array([chain.status == "unusable answer" for chain in chains]),
            ("looks", ""): np.array([looks_of(chain) for chain in chains], dtype=np.int64),
            ("rewritten", ""): np.array([len(chain.rounds) > 1 for chain in chains]),
        }
        if all(item.noun for item in view.items):
            concept = view.plan.file.grid.concept
            nouns = [_subjects(item.noun, concept) for item in view.items]
            named = [_names(*one) for one in zip(chains, nouns, strict=True)]
            found["names_subject", ""] = np.array(named, dtype=bool)
        return found

    def figures(self, sample: Sample, rule: Rule | AnyOf | None) -> Iterator[Figure]:
        """Yield the figures of `shown`; that of subjects where a prompt was rewritten."""
        if not sample.has("looks"):
            return
        rewritten = sample.column("rewritten")
        kept = sample.column("kept")
        yield sample.share(KEPT, kept)
        yield sample.share(UNCHANGED, kept * (1 - rewritten))
        if sample.has("names_subject") and rewritten.any():
            yield _among(sample, NAMED, sample.column("names_subject"), rewritten > 0)
        yield sample.share(UNUSABLE, sample.column("unusable"))
        yield sample.mean(LOOKS, sample.column("looks"))


def _among(sample: Sample, name: str, values: np.ndarray, those: np.ndarray) -> Figure:
    """Return the share of values, (P,), among some pictures, (P,) of yes and no."""
    clusters = [label for label, one in zip(sample.clusters, those, strict=True) if one]
    estimate = cluster_bootstrap(values[those], clusters)
    return sample.figure(name, estimate, interval=interval_of_share(estimate))


def _subjects(nouns: str, concept: str | None) -> list[str]:
    """Return the nouns of a row ("car" or "axe, dog") that are not the concept itself."""
    return [noun for part in nouns.split(",") if category_of(noun := part.strip()) != concept]


def _names(chain: Chain, nouns: Sequence[str]) -> bool:
    """Return whether the last prompt of a chain has every noun."""
    said = chain.last.prompt
    return all(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", said, re.IGNORECASE) for n in nouns)
