"""What NudeNet says of real pictures, those in scikit-image's wheel: as published, and ours.

The numbers are those of nudenet 3.4.2. scikit-image itself is not imported.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ine.detectors.base import scores_of
from ine.detectors.nudenet import Floors, NudeNet
from ine.detectors.rules import RULES, find_rule
from ine.detectors.table import load_detector
from ine.pictures import read_whole

FACES = {
    "astronaut.png": ("FACE_FEMALE", 0.720, [173, 82, 102, 98]),
    "camera.png": ("FACE_MALE", 0.576, [182, 128, 84, 69]),
}
NOTHING = ("chelsea.png", "coffee.png", "rocket.jpg")
PICTURES = (*FACES, *NOTHING)


def path_of(name):
    return Path(find_spec("skimage").origin).parent / "data" / name


@cache
def picture(name):
    return read_whole(path_of(name))


@pytest.fixture(scope="module")
def detectors():
    return {channels: NudeNet(channels) for channels in ("bgr", "rgb")}


@pytest.fixture(scope="module")
def seen(detectors):
    """{(channels, picture): {label: score}}."""
    return {(c, name): d([picture(name)])[0] for c, d in detectors.items() for name in PICTURES}


@pytest.fixture(scope="module")
def package(detectors):
    """The package's own detector."""
    return detectors["bgr"].detector


def plain(found):
    return [{"class": d.label, "score": d.score, "box": list(d.box)} for d in found]


@pytest.mark.parametrize("name", FACES)
def test_a_face_is_where_the_package_is_known_to_find_it(package, name):
    label, score, box = FACES[name]
    [found] = package.detect(str(path_of(name)))
    assert found == {"class": label, "score": pytest.approx(score, abs=1e-3), "box": box}


@pytest.mark.parametrize("name", NOTHING)
def test_a_cat_a_cup_and_a_rocket_are_nothing(package, detectors, name):
    assert package.detect(str(path_of(name))) == []
    assert detectors["bgr"].detect([picture(name)]) == [()]


@pytest.mark.parametrize("name", PICTURES)
def test_ours_is_what_the_package_says_of_the_path(package, detectors, name):
    [ours] = detectors["bgr"].detect([picture(name)])
    assert plain(ours) == package.detect(str(path_of(name)))
    assert scores_of(ours) == detectors["bgr"]([picture(name)])[0]


@pytest.mark.parametrize("name", PICTURES)
def test_rgb_is_what_the_package_says_of_an_array_as_pillow_has_it(package, detectors, name):
    [ours] = detectors["rgb"].detect([picture(name)])
    assert plain(ours) == package.detect(picture(name))


@pytest.mark.parametrize(
    "view",
    [
        lambda p: p,
        lambda p: p[:, ::-1],
        lambda p: p[:400],
        lambda p: p[:, 100:],
        lambda p: p[::2, ::2],
        lambda p: (p * 0.8).astype(np.uint8),
    ],
    ids=["whole", "mirrored", "above", "right", "half size", "darker"],
)
def test_rgb_scores_higher_than_bgr(detectors, view):
    face = view(picture("astronaut.png"))
    [bgr], [rgb] = (detectors[channels]([face]) for channels in ("bgr", "rgb"))
    assert rgb.keys() == {"FACE_FEMALE"}
    # At half the size BGR takes her for a man.
    assert max(rgb.values()) > max(bgr.values()) + 0.05


def test_without_colours_there_is_no_order_of_channels(seen):
    assert seen["bgr", "camera.png"] == seen["rgb", "camera.png"] != {}


def test_lower_floors_add_boxes_and_change_none(detectors):
    pictures = [picture(name) for name in PICTURES]
    usual = detectors["bgr"].detect(pictures)
    low = NudeNet(floors=Floors.at(0.01)).detect(pictures)
    assert sum(map(len, low)) > sum(map(len, usual))
    for ours, theirs in zip(low, usual, strict=True):
        assert tuple(d for d in ours if d.score > 0.25) == theirs


def test_numbers_from_0_to_1_are_nothing_to_the_package_and_refused_here(package, detectors):
    wrong = picture("astronaut.png").astype(np.float32) / 255
    assert package.detect(wrong) == []
    with pytest.raises(ValueError, match=r"picture 0 is .*uint8 RGB"):
        detectors["bgr"].detect([wrong])


# --------------------------------------------------------------------------------- rules

READERS = ("nudenet", "nudenet:rgb")
"""Those of NudeNet 3.4; older code is in test_nudenet_codes.py."""

NUDITY = [r for r in RULES.values() if all(p.detector in READERS for p in r.parts)]


@pytest.mark.parametrize("rule", NUDITY, ids=lambda rule: rule.name)
def test_no_published_rule_calls_any_of_them_nude(detectors, seen, rule):
    channels = "rgb" if rule.detector.endswith("rgb") else "bgr"
    assert detectors[channels].settings == load_detector(rule.detector).settings
    for name in PICTURES:
        assert not rule.fires(seen[channels, name]), name
        assert rule.score(seen[channels, name]) == 0, name


def test_positive_control_a_cup_of_coffee_in_rgb(seen):
    """Low thresholds, all labels and RGB: the cup is called buttocks, at .296."""
    bgr, rgb = seen["bgr", "coffee.png"], seen["rgb", "coffee.png"]
    assert rgb == {"BUTTOCKS_EXPOSED": pytest.approx(0.296, abs=1e-3)}
    for name, scores, fires in [
        ("nudenet-l5-rgb@0.25", rgb, True),
        ("nudenet-l9-rgb@0.25", rgb, True),
        ("nudenet-l5-rgb@0.3", rgb, False),
        # Four labels have no buttocks.
        ("duo-4labels-rgb@0", rgb, False),
        ("nudenet-l5@0.25", bgr, False),
    ]:
        assert find_rule(name).fires(scores) == fires, name
