"""McNemar, Holm, non-inferiority, success at matched preservation; against closed forms."""

import doctest
import math

import numpy as np
import pytest

from ine.evaluation import paired
from ine.evaluation.matched import Sweep, isotonic, success_at
from ine.evaluation.paired import holm, mcnemar, non_inferiority
from ine.evaluation.stats import cluster_bootstrap, wilson


def test_examples_in_the_documentation_are_true():
    result = doctest.testmod(paired)
    assert result.attempted
    assert not result.failed


# McNemar


def discordant(only_first, only_second, both=5, neither=7):
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    return first, second


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * 7 / 64),
        (2, 8, 2 * 56 / 1024),
        (10, 0, 2 / 1024),
    ],
)
def test_mcnemar_is_a_fair_coin_over_discordant_pairs(b, c, p):
    found = mcnemar(*discordant(b, c))
    assert (found.only_first, found.only_second, found.pairs) == (b, c, b + c + 12)
    assert found.p == pytest.approx(p)
    assert mcnemar(*reversed(discordant(b, c))).p == found.p


def test_mcnemar_of_many_pairs_is_exact_and_near_the_normal():
    found = mcnemar(*discordant(1000, 1100))
    z = (100 - 1) / math.sqrt(2100)
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_mcnemar_holds_its_level():
    rng = np.random.default_rng(0)
    p = [mcnemar(*(rng.random((2, 80)) < 0.3).astype(int)).p for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) <= 0.06


def test_pictures_of_one_prompt_are_one_trial():
    """Four pictures a prompt that all go one way are not four coins."""
    rng = np.random.default_rng(1)
    level = {True: 0, False: 0}
    for _ in range(300):
        way = rng.integers(0, 2, 12)
        first, second = np.repeat(way, 4), np.repeat(1 - way, 4)
        ids = np.repeat(np.arange(12), 4)
        for clustered in level:
            level[clustered] += mcnemar(first, second, ids if clustered else None).p <= 0.05
    assert level[True] / 300 <= 0.08
    assert level[False] / 300 > 0.15
    # Pictures of a prompt that cancel agree.
    assert mcnemar([1, 0], [0, 1], ["a", "a"]).pairs == 1
    assert mcnemar([1, 0], [0, 1], ["a", "a"]).p == 1


@pytest.mark.parametrize(
    ("first", "second", "clusters"),
    [([1], [1, 0], None), ([], [], None), ([2, 0], [0, 0], None), ([1, 0], [0, 1], ["a"])],
)
def test_mcnemar_refuses_other_things(first, second, clusters):
    with pytest.raises(ValueError, match=r"outcomes"):
        mcnemar(first, second, clusters)


# Holm


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


def test_holm_keeps_the_chance_of_any_false_rejection():
    rng = np.random.default_rng(2)
    drawn = rng.random((2000, 8))
    assert np.mean([min(holm(row)) <= 0.05 for row in drawn]) == pytest.approx(0.05, abs=0.015)
    assert np.mean(drawn.min(axis=1) <= 0.05) > 0.3


# No worse than


def test_no_worse_needs_an_interval_within_the_margin_and_enough_pictures():
    rng = np.random.default_rng(3)
    old = rng.normal(0.8, 0.1, 1200)
    same, worse = old + rng.normal(0, 0.02, 1200), old - 0.05 + rng.normal(0, 0.02, 1200)
    ids = np.arange(1200) // 2
    found = non_inferiority(same, old, ids, margin=0.02)
    assert found.shown
    assert found.words.startswith("no worse: difference")
    lost = non_inferiority(worse, old, ids, margin=0.02)
    assert not lost.within
    assert lost.words.startswith("worse: ")
    few = non_inferiority(same[:900], old[:900], ids[:900], margin=0.02)
    assert few.within
    assert not few.shown
    assert few.words.startswith("not shown, fewer than 1000 pictures")
    # Not significantly different is no proof: a wide interval shows nothing.
    rough = old + rng.normal(-0.005, 1, 1200)
    wide = non_inferiority(rough, old, ids, margin=0.02)
    assert wide.difference.low < 0 < wide.difference.high
    assert not wide.shown
    for margin in (0, -1, math.nan):
        with pytest.raises(ValueError, match="chosen beforehand"):
            non_inferiority(same, old, ids, margin=margin)


def test_no_worse_holds_its_level_at_the_margin():
    rng = np.random.default_rng(4)
    shown = 0
    for seed in range(200):
        difference = rng.normal(-0.02, 0.3, 1000)
        found = non_inferiority(difference, np.zeros(1000), range(1000), 0.02, draws=400, seed=seed)
        shown += found.shown
    assert shown / 200 <= 0.06


# Matched preservation


def straight(strengths, success, kept, prompts=400, noise=0.0, seed=0):
    """A sweep whose means are exactly the given ones but for noise on what is kept."""
    rng = np.random.default_rng(seed)
    ranks = (np.arange(prompts) + 0.5) / prompts
    return Sweep(
        strengths=tuple(strengths),
        safe=np.array([(ranks < s).astype(float) for s in success]),
        kept=np.array([np.full(prompts, k) for k in kept]) + rng.normal(0, noise, prompts),
        safe_clusters=tuple(range(prompts)),
        kept_clusters=tuple(range(prompts)),
    )


def test_success_is_read_between_the_strengths():
    sweep = straight([0, 1, 2, 4], [0.2, 0.4, 0.6, 0.9], [1.0, 0.9, 0.8, 0.5])
    for level, success, strength in (
        (1.0, 0.2, 0),
        (0.95, 0.3, 0.5),
        (0.8, 0.6, 2),
        (0.65, 0.75, 3),
        (0.5, 0.9, 4),
    ):
        found = success_at(sweep, level, draws=200)
        assert found.success.value == pytest.approx(success, abs=1e-9)
        assert found.strength == pytest.approx(strength)
        assert found.success.low < success < found.success.high
        assert found.note == ""


def test_outside_of_the_sweep_nothing_is_made_up():
    sweep = straight([1, 2], [0.4, 0.6], [0.9, 0.8])
    above, below = success_at(sweep, 0.95, draws=50), success_at(sweep, 0.7, draws=50)
    assert math.isnan(above.success.value)
    assert math.isnan(below.success.value)
    assert "not reached: even the weakest strength preserves 0.900" in above.note
    assert "strongest still preserves 0.800; success is at least 0.600" in below.note


def test_at_one_strength_it_is_the_cluster_bootstrap():
    """Where preservation has no noise, the interval is that of the success at that strength."""
    rng = np.random.default_rng(5)
    ids = tuple(n // 4 for n in range(240))
    safe = (rng.random(240) < rng.beta(2, 2, 60)[list(ids)]).astype(float)
    sweep = Sweep(
        strengths=(1, 2, 3),
        safe=np.stack([np.zeros(240), safe, np.ones(240)]),
        kept=np.array([[1.0] * 9, [0.7] * 9, [0.2] * 9]),
        safe_clusters=ids,
        kept_clusters=tuple(range(9)),
    )
    found, plain = success_at(sweep, 0.7).success, cluster_bootstrap(safe, ids)
    assert found.value == pytest.approx(plain.value)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert (found.count, found.clusters) == (240, 60)


def test_all_safe_still_has_an_interval():
    sweep = straight([1, 2], [1.0, 1.0], [0.9, 0.8], prompts=20)
    found = success_at(sweep, 0.85).success
    assert (found.low, found.high) == pytest.approx((wilson(20, 20).low, 1))


def test_bends_in_a_sweep_are_straightened():
    # Preservation that rises by chance from .8 to .84 is pooled to .82.
    sweep = straight([0, 1, 2, 3], [0.2, 0.5, 0.6, 0.8], [1.0, 0.8, 0.84, 0.6])
    found = success_at(sweep, 0.82, draws=20)
    assert found.strength == pytest.approx(2)
    assert found.success.value == pytest.approx(0.6, abs=1e-9)


def test_isotonic_regression_is_the_nearest_rising_row():
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(30, 5))
    found = isotonic(rows)
    assert (np.diff(found, axis=1) >= -1e-12).all()
    assert found.sum(axis=1) == pytest.approx(rows.sum(axis=1))
    for row, fit in zip(rows, found, strict=True):
        best = ((row - fit) ** 2).sum()
        for _ in range(200):
            other = np.sort(fit + rng.normal(0, 0.3, 5))
            assert ((row - other) ** 2).sum() >= best - 1e-9
    np.testing.assert_array_equal(isotonic([[1, 2, 2, 3]]), [[1, 2, 2, 3]])


def test_intervals_at_matched_preservation_cover():
    """The truth is success .5 at preservation .75; pictures of a prompt correlate."""
    rng = np.random.default_rng(8)
    held = 0
    for seed in range(120):
        chance = rng.beta(1, 1, 60)
        noise = rng.random((60, 4))
        safe = [(noise < chance[:, None] * 0), (noise < chance[:, None])]
        kept_noise = rng.normal(0, 0.1, 60)
        sweep = Sweep(
            strengths=(0, 1, 2),
            safe=np.stack([safe[0].ravel(), safe[1].ravel(), np.ones(240)]),
            kept=np.stack([np.ones(60), 0.75 + kept_noise, 0.3 + kept_noise]),
            safe_clusters=tuple(np.repeat(np.arange(60), 4)),
            kept_clusters=tuple(range(60)),
        )
        found = success_at(sweep, 0.75, draws=300, seed=seed).success
        held += found.low <= 0.5 <= found.high
    assert 0.88 <= held / 120 <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"strengths": (2, 1)},
        {"strengths": (1,)},
        {"safe": np.zeros((2, 3))},
        {"kept_clusters": ("a",)},
        {"kept": np.full((2, 400), np.nan)},
    ],
)
def test_sweeps_that_do_not_fit_are_refused(change):
    fields = vars(straight([1, 2], [0.1, 0.2], [0.9, 0.8]))
    with pytest.raises(ValueError, match=r"expected|not finite"):
        Sweep(**{**fields, **change})
