"""SSIM, LPIPS's guard, Frechet distance, preservation, I2P's maximum; against closed forms."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from ine.errors import MissingDependency
from ine.evaluation.frechet import bias_note, frechet_distance, moments, name_of
from ine.evaluation.metrics import preservation
from ine.evaluation.metrics.categories import by_category
from ine.evaluation.metrics.expected_maximum import expected_maximum
from ine.evaluation.similarity import lpips, ssim, to_lpips
from ine.evaluation.stats import cluster_bootstrap
from ine.store.pictures import Store
from ine.store.units import Missing

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def noise(count=None, size=32, seed=0):
    shape = (size, size, 3) if count is None else (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def even(value, size=24):
    return np.full((size, size, 3), value, np.uint8)


# SSIM


def test_a_picture_is_wholly_like_itself():
    assert ssim(noise(), noise()) == pytest.approx(1)
    assert ssim(even(0), even(0)) == pytest.approx(1)


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 110), (20, 200)])
def test_even_pictures_compare_by_their_brightness_alone(a, b):
    expected = (2 * a * b + C1) / (a * a + b * b + C1)
    assert ssim(even(a), even(b)) == pytest.approx(expected, abs=1e-9)


def test_a_shift_in_brightness_leaves_the_structure():
    """x + d: variances and covariance are equal, so only the means count."""
    rng = np.random.default_rng(3)
    grey = rng.integers(40, 150, (11, 11, 1)).astype(np.uint8).repeat(3, axis=2)
    other = grey + np.uint8(60)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mean = (grey[..., 0] * window).sum()
    expected = (2 * mean * (mean + 60) + C1) / (mean**2 + (mean + 60) ** 2 + C1)
    assert ssim(grey, other) == pytest.approx(expected, rel=1e-6)


def test_a_picture_of_one_window_follows_the_formula():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 256, (2, 11, 11, 1)).astype(np.uint8).repeat(3, axis=3)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = a[..., 0].astype(float), b[..., 0].astype(float)
    mx, my = (x * window).sum(), (y * window).sum()
    vx, vy = ((x - mx) ** 2 * window).sum(), ((y - my) ** 2 * window).sum()
    cov = ((x - mx) * (y - my) * window).sum()
    expected = (2 * mx * my + C1) * (2 * cov + C2)
    expected /= (mx**2 + my**2 + C1) * (vx + vy + C2)
    assert ssim(a, b) == pytest.approx(expected)


def test_similarity_falls_with_noise_and_is_symmetric():
    base = np.clip(np.cumsum(noise(seed=1).astype(int) % 9, axis=1), 0, 255).astype(np.uint8)
    rng = np.random.default_rng(5)
    found = []
    for strength in (1, 10, 40):
        other = np.clip(base + rng.normal(0, strength, base.shape), 0, 255).astype(np.uint8)
        found.append(ssim(base, other))
        assert ssim(other, base) == pytest.approx(found[-1])
    assert 1 > found[0] > found[1] > found[2] > -1
    # The negative of a picture has the opposite structure.
    assert ssim(base, 255 - base) < 0


def test_many_pictures_give_one_number_each():
    a, b = noise(3), noise(3, seed=1)
    assert ssim(a, b) == pytest.approx([ssim(x, y) for x, y in zip(a, b, strict=True)])
    for wrong in ((a, b[:2]), (a / 255, b / 255), (a[..., 0], b[..., 0]), (a[:, :10], b[:, :10])):
        with pytest.raises(ValueError, match="pictures"):
            ssim(*wrong)


# LPIPS


def test_lpips_is_not_there_and_says_what_it_needs():
    with pytest.raises(MissingDependency, match=r"lpips \(BSD-2\) and torchvision; missing"):
        lpips(noise(1), noise(1))


def test_lpips_is_asked_at_the_stated_size(monkeypatch):
    seen = []

    class Distance(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.net = net

        def forward(self, a, b):
            seen.append((self.net, tuple(a.shape), a.min().item(), a.max().item()))
            return ((a - b) ** 2).mean((1, 2, 3), keepdim=True)

    module = ModuleType("lpips")
    module.LPIPS = Distance
    monkeypatch.setitem(sys.modules, "lpips", module)
    with pytest.raises(MissingDependency, match="missing: torchvision"):
        lpips(noise(1), noise(1))
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    black, white = np.zeros((3, 32, 32, 3), np.uint8), np.full((3, 32, 32, 3), 255, np.uint8)
    found = lpips(black, white, net="vgg", size=16, batch=2)
    assert found == pytest.approx([4, 4, 4])
    assert [s[:2] for s in seen] == [("vgg", (2, 3, 16, 16)), ("vgg", (1, 3, 16, 16))]
    assert seen[0][2:] == (-1, -1)
    assert lpips(white, white) == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("shape", [(128, 128), (100, 75), (64, 64), (40, 30)])
def test_lpips_sees_pictures_as_stg_feeds_them(shape):
    """OpenCV's bilinear resize on 8 bits: stretched, without antialiasing."""
    import cv2

    picture = noise(size=128)[: shape[0], : shape[1]]
    [found] = to_lpips(picture[None], 64)
    wanted = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found.transpose(1, 2, 0), wanted / 127.5 - 1, atol=1e-6)
    if shape == (128, 128):
        # At half the side, the mean of two by two.
        means = picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs((found.transpose(1, 2, 0) + 1) * 127.5 - means).max() < 1
        # Positive control: what keeps other pixels differs.
        cubic = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_CUBIC)
        assert np.abs(cubic.astype(float) - wanted).mean() > 5


def test_distances_of_earlier_versions_are_not_read_again(monkeypatch):
    """They were of pictures resized otherwise, and stand in stores under the measure's name."""
    known = {("a", "ssim:b"): np.zeros(1), ("a", "lpips-alex@64:b"): np.zeros(1)}

    class Known(Store):
        def numbers(self, key, name):
            if (key, name) not in known:
                raise Missing("not there")
            return known[key, name]

        def write_numbers(self, key, name, values):
            known[key, name] = values

        def pictures(self, key):
            return noise(1)

        def about(self, key):
            return SimpleNamespace(redone=(False,))

    monkeypatch.setattr(preservation, "compare", lambda *_: np.ones(1))
    plan = SimpleNamespace(store=Known(Path()))
    assert preservation.alike(plan, "ssim", "a", "b") == 0
    for _ in range(2):
        assert preservation.alike(plan, "lpips-alex@64", "a", "b") == 1
    assert len(known) == 3


# Frechet


def symmetric_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def gaussian(mean, covariance):
    """Features whose sample moments are exactly these."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5 * len(mean) + 10, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(symmetric_root(np.cov(x, rowvar=False)))
    return moments(x @ symmetric_root(covariance) + mean)


def test_gaussians_of_one_dimension():
    """(m_1 - m_2)^2 + (s_1 - s_2)^2."""
    a = moments(np.array([[0.0], [2.0]]))
    b = moments(np.array([[3.0], [9.0]]))
    s_a, s_b = math.sqrt(2), math.sqrt(18)
    found = frechet_distance(a, b)
    assert found == pytest.approx((1 - 6) ** 2 + (s_a - s_b) ** 2)


def test_gaussians_with_axes_in_common():
    a = gaussian([0, 1, 2], np.diag([1, 4, 9]))
    b = gaussian([1, 1, 0], np.diag([4, 4, 25]))
    expected = 1 + 4 + (1 - 2) ** 2 + 0 + (3 - 5) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_gaussians_that_are_turned():
    """The distance does not change when both are turned, and C with c^2 C gives tr C (1 - c)^2."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    covariance = root @ root.T
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    a, b = gaussian(np.zeros(4), covariance), gaussian(np.ones(4), np.diag([1, 2, 3, 4]))
    c = gaussian(np.zeros(4), turn @ covariance @ turn.T)
    d = gaussian(turn @ np.ones(4), turn @ np.diag([1, 2, 3, 4]) @ turn.T)
    distance = frechet_distance(a, b)
    assert frechet_distance(c, d) == pytest.approx(distance)
    assert frechet_distance(b, a) == pytest.approx(distance)
    wider = gaussian(np.zeros(4), 9 * covariance)
    assert frechet_distance(a, wider) == pytest.approx(4 * np.trace(covariance))


@pytest.mark.parametrize(("count", "width"), [(50, 6), (5, 6), (3, 40)])
def test_it_is_the_formula_with_matrix_roots(count, width):
    rng = np.random.default_rng(8)
    one, other = rng.normal(size=(count, width)), 1 + 2 * rng.normal(size=(2 * count, width))
    first, second = (np.cov(x, rowvar=False) for x in (one, other))
    # The product is not symmetric, but has the same trace of the root.
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).sum().real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected += np.trace(first) + np.trace(second) - 2 * root
    found = frechet_distance(moments(one), moments(other))
    assert found == pytest.approx(expected, abs=1e-5)


def test_equal_sets_are_at_no_distance_even_where_singular():
    features = np.random.default_rng(2).normal(size=(10, 40))
    found = frechet_distance(moments(features), moments(features))
    assert found == pytest.approx(0, abs=1e-12)
    assert "10 pictures for 40 features" in bias_note(*features.shape)
    assert bias_note(100, 4) == ""


def test_only_inception_makes_an_fid():
    assert name_of("inception-v3") == "FID"
    assert name_of("mini-judge") == "frechet-mini-judge"
    assert name_of("clip-vit-l") == "frechet-clip-vit-l"


def test_sets_that_cannot_be_compared_are_refused():
    a = moments(noise(4).reshape(4, -1)[:, :3])
    with pytest.raises(ValueError, match="width"):
        frechet_distance(a, moments(np.eye(2)))
    for wrong in (np.ones(3), np.ones((1, 3)), np.full((3, 2), np.nan)):
        with pytest.raises(ValueError, match="features"):
            moments(wrong)


# I2P


def test_the_expected_maximum_of_a_few_prompts_by_hand():
    """Shares 0, 1/2 and 1; of the three pairs two have the largest and one has the middle."""
    unsafe, prompts = [0, 0, 0, 1, 1, 1], ["a", "a", "b", "b", "c", "c"]
    found = expected_maximum(unsafe, prompts, size=2)
    assert found == pytest.approx((1 + 1 + 0.5) / 3)
    assert expected_maximum(unsafe, prompts, size=1) == pytest.approx(0.5)
    assert expected_maximum(unsafe, prompts, size=3) == 1


def test_the_expected_maximum_is_that_of_draws_without_replacement():
    rng = np.random.default_rng(9)
    prompts = np.repeat(np.arange(80), 10)
    unsafe = (rng.random(800) < rng.beta(1, 5, 80)[prompts]).astype(int)
    found = expected_maximum(unsafe, prompts.tolist())
    shares = unsafe.reshape(80, 10).mean(axis=1)
    drawn = [rng.choice(shares, 25, replace=False).max() for _ in range(4000)]
    assert found == pytest.approx(np.mean(drawn), abs=0.01)
    assert found == expected_maximum(unsafe, prompts.tolist())


def test_the_benchmarks_size_is_summed_without_overflow():
    shares = np.linspace(0, 1, 4703)
    found = expected_maximum(shares, range(4703))
    # The largest of 25 of an even spread lies at 25 / 26.
    assert found == pytest.approx(25 / 26, abs=1e-3)
    with pytest.raises(ValueError, match="at least 25 prompts"):
        expected_maximum([1, 0], ["a", "b"])


def test_pictures_of_two_categories_count_in_both():
    values = [1, 0, 1, 1]
    categories = ["hate, shocking", "shocking", ("hate",), "violence,hate"]
    found = by_category(values, categories, ["a", "b", "c", "d"])
    assert list(found) == ["hate", "shocking", "violence"]
    assert {name: (e.value, e.count) for name, e in found.items()} == {
        "hate": (1, 3),
        "shocking": (0.5, 2),
        "violence": (1, 1),
    }
    assert found["shocking"] == cluster_bootstrap([1, 0], ["a", "b"])
    for wrong in (["a", "b", "", "c"], ["a"]):
        with pytest.raises(ValueError, match="categories"):
            by_category(values, wrong, ["a", "b", "c", "d"])
