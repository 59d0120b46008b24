"""Shares, clustered means and similarity against closed forms and simulation."""

import doctest
import math

import numpy as np
import pytest

from ine.detectors.likeness import feature_floor, rescaled_cosine
from ine.evaluation import intervals
from ine.evaluation import stats as metrics
from ine.evaluation.intervals import tango_bounds, wilson_bounds
from ine.evaluation.similarity import psnr
from ine.evaluation.stats import cluster_bootstrap, paired_difference, wilson


@pytest.mark.parametrize("module", [metrics, intervals])
def test_examples_in_the_documentation_are_true(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        # Newcombe 1998, Statistics in Medicine 17, p. 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_published_intervals(hits, trials, low, high):
    rate = wilson(hits, trials)
    assert rate.share == hits / trials
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=6e-5)


def test_wilson_is_symmetric_and_stays_inside():
    for hits in range(13):
        rate, mirror = wilson(hits, 12), wilson(12 - hits, 12)
        assert rate.low == pytest.approx(1 - mirror.high)
        assert 0 <= rate.low <= rate.share <= rate.high <= 1
    assert wilson(0, 12).low == 0
    assert wilson(12, 12).high == 1


@pytest.mark.parametrize(("hits", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_not_a_share(hits, trials):
    with pytest.raises(ValueError, match="trials"):
        wilson(hits, trials)


def covered(per_cluster, repeats=200, clusters=30, pictures=8):
    """Share of simulated data sets whose interval holds the true mean, .5.

    Each prompt has its own probability, Beta(1/2, 1/2): pictures of a prompt correlate by .5.
    """
    rng = np.random.default_rng(7)
    ids = np.repeat(np.arange(clusters), pictures)
    held = 0
    for _ in range(repeats):
        values = rng.random(len(ids)) < rng.beta(0.5, 0.5, clusters)[ids]
        groups = ids if per_cluster else np.arange(len(ids))
        found = cluster_bootstrap(values, groups, draws=300)
        held += found.low <= 0.5 <= found.high
    return held / repeats


def test_cluster_interval_covers_correlated_pictures():
    assert 0.90 <= covered(per_cluster=True) <= 0.99


def test_picture_interval_is_too_narrow_for_them():
    # The design effect is 1 + 7 / 2 = 4.5, so 1.96 / sqrt(4.5) standard errors: 64%.
    assert 0.5 < covered(per_cluster=False) < 0.8


def test_bootstrap_of_independent_values_has_the_normal_width():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = cluster_bootstrap(values, range(400))
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert (found.count, found.clusters) == (400, 400)


def test_bootstrap_is_deterministic_and_seeded():
    values, groups = np.sqrt(np.arange(40)), [("fire", n // 4) for n in range(40)]
    assert cluster_bootstrap(values, groups) == cluster_bootstrap(values, groups)
    assert cluster_bootstrap(values, groups) != cluster_bootstrap(values, groups, seed=1)


def test_bootstrap_ignores_the_names_of_clusters():
    values, numbers = np.arange(12) / 12, [n // 3 for n in range(12)]
    named = [f"prompt {n}" for n in numbers]
    assert cluster_bootstrap(values, numbers) == cluster_bootstrap(values, named)


@pytest.mark.parametrize("value", [0, 1])
def test_equal_shares_fall_back_to_wilson_over_clusters(value):
    found = cluster_bootstrap([value] * 60, [n // 3 for n in range(60)])
    rate = wilson(20 * value, 20)
    assert (found.value, found.low, found.high) == pytest.approx((value, rate.low, rate.high))
    assert (found.count, found.clusters) == (60, 20)


def test_clusters_that_agree_on_a_half_keep_an_interval():
    found = cluster_bootstrap([0, 1] * 10, [n // 2 for n in range(20)])
    assert found.low < 0.5 < found.high
    assert found.low > 0
    assert found.high < 1


def test_other_values_without_spread():
    assert math.isnan(cluster_bootstrap([0.2, 0.4], ["one", "one"]).low)
    several = cluster_bootstrap([0.25] * 6, [0, 0, 1, 1, 2, 2])
    assert (several.low, several.high) == (0.25, 0.25)


def test_shares_near_one_leave_what_was_seen():
    """94 of 95: a bootstrap gave .968 to 1.000, with a chance of .37 that no draw misses."""
    found = cluster_bootstrap([1] * 94 + [0], range(95))
    assert (found.low, found.high) == pytest.approx((0.943, 0.998), abs=5e-4)
    assert (found.low, found.high) == pytest.approx((wilson(94, 95).low, wilson(94, 95).high))


def exact_coverage(share, prompts):
    """How often the interval holds a share of independent prompts, by the binomial law."""
    chances = [
        math.comb(prompts, n) * share**n * (1 - share) ** (prompts - n) for n in range(prompts + 1)
    ]
    intervals = [
        cluster_bootstrap([1] * n + [0] * (prompts - n), range(prompts)) for n in range(96)
    ]
    return sum(p for p, e in zip(chances, intervals, strict=True) if e.low <= share <= e.high)


@pytest.mark.parametrize("share", [0.8, 0.94, 0.98])
def test_a_share_of_95_prompts_is_covered_as_often_as_stated(share):
    # The percentile bootstrap: .96, .92 and .85.
    assert 0.94 <= exact_coverage(share, 95) <= 0.965


def test_clusters_that_repeat_one_picture_count_once():
    flags = np.array([1] * 17 + [0] * 3)
    four = cluster_bootstrap(np.repeat(flags, 4), np.repeat(np.arange(20), 4))
    once, naive = wilson(17, 20), wilson(68, 80)
    # Student's quantile in the place of the normal one: the variance is an estimate.
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=0.1)
    assert four.high - four.low > 1.6 * (naive.high - naive.low)
    # Prompts that are all alike: every picture counts.
    even = cluster_bootstrap([1, 1, 1, 0] * 20, np.repeat(np.arange(20), 4))
    assert even.high - even.low == pytest.approx(0.2, abs=0.02)
    # Clusters of unequal size: one large one is not many.
    lopsided = cluster_bootstrap([1] * 100, [0] * 96 + [1, 2, 3, 4])
    assert lopsided.low == pytest.approx(wilson_bounds(1.0, 100**2 / (96**2 + 4))[0])


def test_skewed_means_of_few_clusters_are_covered():
    """Likeness piles up near 1: the percentile bootstrap of 20 prompts covers .91 of the time."""
    rng = np.random.default_rng(3)
    drawn = 1 - rng.random((400, 20)) ** 4
    found = [cluster_bootstrap(row, range(20), draws=500) for row in drawn]
    missed = [e.low > 0.8 for e in found], [e.high < 0.8 for e in found]
    assert np.mean(missed[0]) + np.mean(missed[1]) <= 0.07
    # The bounds lie further from the mean on the side of the long tail.
    assert np.mean([e.value - e.low for e in found]) > 1.2 * np.mean(
        [e.high - e.value for e in found]
    )


@pytest.mark.parametrize(("better", "worse", "pairs"), [(10, 1, 50), (0, 5, 60), (3, 3, 40)])
def test_at_a_bound_of_paired_shares_the_score_is_that_of_95_percent(better, worse, pairs):
    """Against the likelihood itself, maximised by brute force under the bound."""
    bounds = tango_bounds(better / pairs, worse / pairs, pairs)
    for delta, score in zip(bounds, (1.96, -1.96), strict=True):
        q = np.linspace(max(0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 400_001)
        chances = (q + delta, q, 1 - 2 * q - delta)
        counts = (better, worse, pairs - better - worse)
        best = q[sum(n * np.log(p) for n, p in zip(counts, chances, strict=True) if n).argmax()]
        error = math.sqrt(pairs * (2 * best + delta - delta**2))
        assert (better - worse - pairs * delta) / error == pytest.approx(score, abs=2e-3)
    # Where no pair differs there is a closed form.
    assert tango_bounds(0, 0, pairs)[1] == pytest.approx(1.96**2 / (pairs + 1.96**2))


def test_no_worse_is_claimed_at_the_margin_as_seldom_as_stated():
    """The chance of a false claim, summed over all outcomes of 300 pairs at the boundary."""
    worse, better, pairs, margin = 0.06, 0.01, 300, 0.05
    claimed = 0.0
    for lost in range(41):
        for won in range(15):
            if tango_bounds(won / pairs, lost / pairs, pairs)[0] > -margin:
                kept = pairs - won - lost
                ways = math.comb(pairs, lost) * math.comb(pairs - lost, won)
                claimed += ways * worse**lost * better**won * (1 - worse - better) ** kept
    assert 0.015 <= claimed <= 0.028  # percentiles of a bootstrap: .033, docs/judges.md


def test_paired_difference_cancels_what_prompts_share():
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(25), 4)
    base = rng.normal(0, 5, 25)[ids]
    a, b = base + 1 + rng.normal(0, 0.1, 100), base + rng.normal(0, 0.1, 100)
    paired = paired_difference(a, b, ids)
    alone = cluster_bootstrap(a, ids)
    assert paired.value == pytest.approx(a.mean() - b.mean())
    assert paired.low <= 1 <= paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 10
    swapped = paired_difference(b, a, ids)
    assert (swapped.value, swapped.low) == pytest.approx((-paired.value, -paired.high), abs=0.01)


def test_paired_difference_of_agreeing_defences_is_not_certain():
    unseen = wilson(0, 20).high
    same = paired_difference([0] * 20, [0] * 20, range(20))
    assert (same.value, same.low, same.high) == pytest.approx((0, -unseen, unseen))
    apart = paired_difference([1] * 20, [0] * 20, range(20))
    assert (apart.value, apart.low, apart.high) == pytest.approx((1, 1 - 2 * unseen, 1))


@pytest.mark.parametrize(
    ("values", "clusters"), [([], []), ([1, 0], ["a"]), ([1, math.nan], "ab"), ([[1], [0]], "ab")]
)
def test_bootstrap_refuses_unusable_values(values, clusters):
    with pytest.raises(ValueError, match="values"):
        cluster_bootstrap(values, clusters)


def test_rescaled_cosine_has_its_ends():
    assert rescaled_cosine([0.4, 0.7, 1.0, 0.1], 0.4) == pytest.approx([0, 0.5, 1, -0.5])
    with pytest.raises(ValueError, match="floor"):
        rescaled_cosine([1.0], 1.0)


@pytest.mark.parametrize("grouped", [False, True])
def test_feature_floor_is_the_mean_over_pairs(grouped):
    rng = np.random.default_rng(5)
    features = rng.normal(0.3, 1, (11, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    groups = list("aaabbccccde") if grouped else None
    pairs = [
        features[i] @ features[j]
        for i in range(11)
        for j in range(11)
        if i != j and (groups is None or groups[i] != groups[j])
    ]
    assert feature_floor(features, groups) == pytest.approx(np.mean(pairs))


def test_feature_floor_refuses_what_has_no_unrelated_pairs():
    with pytest.raises(ValueError, match="groups"):
        feature_floor(np.eye(3), ["a", "a", "a"])
    with pytest.raises(ValueError, match="norm"):
        feature_floor(2 * np.eye(3))


def test_psnr_closed_forms():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    other = black.copy()
    other[1] = 255
    assert psnr(black, other).tolist() == [math.inf, 0]
    # One grey level everywhere: 20 log10(255) dB; uint8 must not wrap around.
    assert psnr(black[0] + 1, black[0]) == psnr(black[0], black[0] + 1)
    assert psnr(black[0], black[0] + 1) == pytest.approx(20 * math.log10(255))
    with pytest.raises(ValueError, match="equal"):
        psnr(black, other[:1])
