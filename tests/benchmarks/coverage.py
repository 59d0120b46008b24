"""How often 95% intervals hold the truth, by simulation; shares of one picture a prompt exactly.

    python tests/benchmarks/coverage.py                  # some minutes on one thread
    python tests/benchmarks/coverage.py --draws 200      # coarse

Prints the tables of docs/judges.md: for `metrics.cluster_bootstrap` and `paired_difference` as they
are, beside the percentile bootstrap over clusters. Pictures of a prompt are correlated: a latent
normal number of which a share is the prompt's decides each picture.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import click
import numpy as np

from ine.evaluation.intervals import tango_bounds
from ine.evaluation.paired import non_inferiority
from ine.evaluation.stats import Estimate, cluster_bootstrap, paired_difference, wilson

CLUSTERS = ((95, 1, 0.0), (48, 4, 0.3), (20, 4, 0.3))
"""(prompts, pictures of each, share of the latent variance that is the prompt's)."""

MARGIN = 0.05


def latent(
    prompts: int, pictures: int, alike: float, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return standard normal numbers, those of a prompt correlated by `alike`, (count, P)."""
    shared = rng.standard_normal((count, prompts, 1))
    own = rng.standard_normal((count, prompts, pictures))
    both = math.sqrt(alike) * shared + math.sqrt(1 - alike) * own
    return both.reshape(count, -1)


def percentile(values: np.ndarray, prompts: int, seed: int = 0) -> Estimate:
    """Return the mean with the 2.5 and 97.5 percentiles of means of drawn clusters."""
    means = values.reshape(prompts, -1).mean(1)
    picks = np.random.default_rng(seed).integers(prompts, size=(2000, prompts))
    low, high = np.percentile(means[picks].mean(1), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), len(values), prompts)


def held(intervals: list[Estimate], truth: float) -> tuple[float, float]:
    """Return (share of intervals that hold the truth, their mean width)."""
    holds = [e.low - 1e-9 <= truth <= e.high + 1e-9 for e in intervals]
    return float(np.mean(holds)), float(np.mean([e.high - e.low for e in intervals]))


def exact_coverage(share: float, prompts: int) -> float:
    """Return how often Wilson's interval holds a share, one picture a prompt; no simulation."""
    found = 0.0
    for hits in range(prompts + 1):
        rate = wilson(hits, prompts)
        if rate.low <= share <= rate.high:
            found += math.comb(prompts, hits) * share**hits * (1 - share) ** (prompts - hits)
    return found


def exact_claims(worse: float, better: float, pairs: int) -> float:
    """Return how often "no worse" is claimed of independent pairs, summed over all outcomes."""
    found = 0.0
    same = 1 - worse - better
    # Beyond eight standard deviations there is nothing to add.
    for won in range(int(pairs * better + 8 * math.sqrt(pairs * better)) + 1):
        for lost in range(pairs + 1 - won):
            if tango_bounds(won / pairs, lost / pairs, pairs)[0] <= -MARGIN:
                break
            logs = (
                math.lgamma(pairs + 1)
                - math.lgamma(won + 1)
                - math.lgamma(lost + 1)
                - math.lgamma(pairs - won - lost + 1)
                + (won * math.log(better) if won else 0)
                + lost * math.log(worse)
                + (pairs - won - lost) * math.log(same)
            )
            found += math.exp(logs)
    return found


def shares(count: int) -> None:
    """Print coverage of shares."""
    click.echo("| share | prompts x pictures | now (width) | percentile bootstrap (width) |")
    click.echo("|---|---|---|---|")
    for prompts, pictures, alike in CLUSTERS:
        ids = np.repeat(np.arange(prompts), pictures)
        for share in (0.5, 0.8, 0.94, 0.98):
            rng = np.random.default_rng(1)
            cut = NormalDist().inv_cdf(share)
            drawn = (latent(prompts, pictures, alike, count, rng) < cut).astype(float)
            _line(f"{share:g}", prompts, pictures, share, drawn, ids)


KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "skewed, most near 1": (lambda u: 1 - u**4, 0.8),
    "40% exactly 1": (lambda u: np.where(u < 0.4, 1.0, 1 - ((u - 0.4) / 0.6) ** 3), 0.85),
}
"""Name -> (likeness of a picture by the rank of its latent number in [0, 1], its mean)."""


def means(count: int) -> None:
    """Print coverage of means of likeness."""
    click.echo("\n| likeness | prompts x pictures | now (width) | percentile bootstrap (width) |")
    click.echo("|---|---|---|---|")
    for prompts, pictures, alike in CLUSTERS:
        ids = np.repeat(np.arange(prompts), pictures)
        for name, (of_rank, truth) in KINDS.items():
            rng = np.random.default_rng(2)
            ranks = np.vectorize(NormalDist().cdf)(latent(prompts, pictures, alike, count, rng))
            _line(name, prompts, pictures, truth, of_rank(ranks), ids)


def _line(
    name: str, prompts: int, pictures: int, truth: float, drawn: np.ndarray, ids: np.ndarray
) -> None:
    now, wide = held([cluster_bootstrap(row, ids) for row in drawn], truth)
    before, narrow = held([percentile(row, prompts) for row in drawn], truth)
    click.echo(
        f"| {name} | {prompts} x {pictures} | {now:.3f} ({wide:.3f}) | "
        f"{before:.3f} ({narrow:.3f}) |"
    )


def boundary(count: int) -> None:
    """Print how often "no worse" is claimed of what is exactly as much worse as the margin."""
    click.echo(
        f"\n| worse, better | prompts x pictures | claimed at {MARGIN:g} | before | coverage |"
    )
    click.echo("|---|---|---|---|---|")
    for prompts, pictures, alike in ((1000, 1, 0.0), (250, 4, 0.3), (100, 10, 0.3)):
        ids = np.repeat(np.arange(prompts), pictures)
        for worse, better in ((0.05, 0.0), (0.06, 0.01), (0.15, 0.10)):
            rng = np.random.default_rng(3)
            low, high = (NormalDist().inv_cdf(max(p, 1e-300)) for p in (worse, better))
            numbers = latent(prompts, pictures, alike, count, rng)
            apart = (numbers > -high).astype(float) - (numbers < low)
            pairs = [((row > 0).astype(float), (row < 0).astype(float)) for row in apart]
            claims = [non_inferiority(a, b, ids, MARGIN).within for a, b in pairs]
            old = [percentile(row, prompts).low > -MARGIN for row in apart]
            rate, _ = held([paired_difference(a, b, ids) for a, b in pairs], -MARGIN)
            click.echo(
                f"| {worse:g}, {better:g} | {prompts} x {pictures} | {np.mean(claims):.3f} | "
                f"{np.mean(old):.3f} | {rate:.3f} |"
            )


@click.command()
@click.option("--draws", default=2000, show_default=True, help="Data sets a line.")
def main(draws: int) -> None:
    """Print the tables."""
    click.echo("| share | prompts | Wilson, exactly |\n|---|---|---|")
    for share in (0.8, 0.94, 0.98):
        click.echo(f"| {share:g} | 95 | {exact_coverage(share, 95):.3f} |")
    click.echo(f"\n| worse, better | pairs | claimed at {MARGIN:g}, exactly |\n|---|---|---|")
    for worse, better in ((0.05, 0.0), (0.06, 0.01), (0.15, 0.10)):
        click.echo(f"| {worse:g}, {better:g} | 1000 | {exact_claims(worse, better, 1000):.3f} |")
    click.echo()
    shares(draws)
    means(draws)
    boundary(draws)


if __name__ == "__main__":
    main()
