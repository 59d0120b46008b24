"""NudeNet's boxes, channels and floors.

Made network outputs, which its own post-processing and ours both read, and drawn pictures with
the floors lowered until candidates come out. Real pictures are in test_nudenet_pictures.py.
"""

import numpy as np
import pytest
from made_boxes import Session, drawn, made_output, plain
from PIL import Image

from ine.detectors.base import Detection, detect, scores_of
from ine.detectors.nudenet import (
    PUBLISHED,
    Floors,
    NudeNet,
    boxes_of,
    nudenet_settings,
    unsuppressed,
)
from ine.detectors.published import L4
from ine.detectors.rules import RULES, find_rule
from ine.detectors.table import load_detector
from ine.errors import RecipeError
from ine.pictures import read_whole, write_png

LOW = Floors.at(0.01)


@pytest.fixture(scope="module")
def nudenet():
    return NudeNet()


@pytest.fixture(scope="module")
def lower():
    return NudeNet(floors=LOW)


@pytest.mark.parametrize("shape", [(320, 320), (200, 300), (517, 211)])
@pytest.mark.parametrize("seed", range(4))
def test_our_post_processing_is_nudenets_at_its_floors(monkeypatch, nudenet, lower, seed, shape):
    from nudenet import nudenet as module

    output = made_output(seed)
    monkeypatch.setattr(nudenet.detector, "onnx_session", Session(output))
    picture = np.zeros((*shape, 3), np.uint8)
    theirs = nudenet.detector.detect(picture)
    assert len(theirs) > 5
    ours = boxes_of(output, vars(module)["__labels"], shape[1], shape[0])
    assert plain(ours) == [(h["class"], h["score"], tuple(h["box"])) for h in theirs]
    # And through the detector itself, above the same score of a lower run.
    monkeypatch.setattr(lower.detector, "onnx_session", Session(output))
    [low] = lower.detect(picture[None])
    [usual] = nudenet.detect(picture[None])
    assert len(low) > len(usual)
    assert plain(d for d in low if d.score > 0.25) == plain(usual)


def test_the_floors_are_where_the_package_has_them():
    assert (PUBLISHED.considered, PUBLISHED.reported, PUBLISHED.overlap) == (0.2, 0.25, 0.45)
    output = np.zeros((1, 5, 3), np.float32)
    # Far apart, so that nothing is suppressed.
    output[0, :, 0] = [20, 20, 10, 10, 0.25]
    output[0, :, 1] = [120, 20, 10, 10, 0.26]
    output[0, :, 2] = [220, 20, 10, 10, 0.15]
    found = {
        floor: [round(d.score, 3) for d in boxes_of(output, ["x"], 320, 320, Floors.at(floor))]
        for floor in (0.25, 0.2, 0.1, 0.0)
    }
    assert found == {0.25: [0.26], 0.2: [0.26, 0.25], 0.1: [0.26, 0.25, 0.15], 0.0: found[0.1]}
    for wrong in ({"overlap": 1.5}, {"reported": -0.1}):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            Floors(**wrong)


def test_boxes_that_overlap_too_much_are_dropped_whatever_their_class():
    # Two squares of side 10, moved by d, share 10 (10 - d) of 200 - 10 (10 - d).
    def pair(d):
        return np.array([[0, 0, 10, 10], [d, 0, 10, 10]], np.float64)

    scores = np.array([0.5, 0.9])
    assert unsuppressed(pair(3.8), scores, 0.45) == [1, 0]  # 62 / 138 = .449
    assert unsuppressed(pair(3.7), scores, 0.45) == [1]  # 63 / 137 = .460
    # What a dropped box would have dropped stays.
    chain = np.array([[0, 0, 10, 10], [3, 0, 10, 10], [6, 0, 10, 10]], np.float64)
    assert unsuppressed(chain, np.array([0.9, 0.8, 0.7]), 0.45) == [0, 2]
    assert unsuppressed(np.zeros((0, 4)), np.zeros(0), 0.45) == []


def test_boxes_are_in_pixels_of_the_picture(monkeypatch, nudenet):
    output = np.zeros((1, 22, 2100), np.float32)
    output[0, :5, 0] = [160, 40, 32, 16, 0.8]
    monkeypatch.setattr(nudenet.detector, "onnx_session", Session(output))
    # 640 wide, padded below to a square: the network's 320 pixels are 640 of the picture's.
    [[found]] = nudenet.detect(np.zeros((1, 200, 640, 3), np.uint8))
    assert found.box == (288, 64, 64, 32)
    assert found.label == "FEMALE_GENITALIA_COVERED"
    assert found.score == np.float32(0.8)


def test_path_and_array_agree_in_bgr_and_not_in_rgb(tmp_path):
    """The order of the published rules: what a file path gives, an array gives here."""
    write_png(tmp_path / "a.png", drawn())
    picture = read_whole(tmp_path / "a.png")
    np.testing.assert_array_equal(picture, drawn())
    by_path = NudeNet()
    from nudenet import nudenet as module

    pixels = module._read_image(str(tmp_path / "a.png"))[0]
    seen = []

    class Watching:
        def run(self, names, inputs):
            seen.append(next(iter(inputs.values())))
            return [np.zeros((1, 22, 2100), np.float32)]

    by_path.detector.onnx_session = Watching()
    by_path(picture[None])
    np.testing.assert_array_equal(seen[0], pixels)
    other = NudeNet("rgb")
    other.detector.onnx_session = Watching()
    other(picture[None])
    np.testing.assert_array_equal(seen[1], pixels[:, ::-1])
    assert not np.array_equal(seen[1], pixels)


def test_the_order_of_channels_changes_scores():
    found = [NudeNet(c, LOW).detect(drawn()[None])[0] for c in ("bgr", "rgb")]
    assert all(found), "lowered floors bring candidates out of any picture"
    assert plain(found[0]) != plain(found[1])
    for d in found[0]:
        assert 0.01 < d.score <= 1
        x, y, w, h = d.box
        assert 0 <= x <= x + w <= 300
        assert 0 <= y <= y + h <= 200


def test_at_the_published_floors_the_package_itself_answers(nudenet):
    pictures = np.stack([drawn(seed=n) for n in range(3)])
    theirs = [nudenet.detector.detect(np.ascontiguousarray(p[..., ::-1])) for p in pictures]
    ours = [
        [{"class": d.label, "score": d.score, "box": list(d.box)} for d in found]
        for found in nudenet.detect(pictures)
    ]
    assert ours == theirs


def test_grey_pictures_and_pictures_of_different_sizes(nudenet, lower, tmp_path):
    Image.fromarray(drawn()[..., 0]).save(tmp_path / "grey.png")
    grey = read_whole(tmp_path / "grey.png")
    assert grey.shape == (200, 300, 3)
    both = lower.detect([grey, drawn(120, 90)])
    assert plain(both[1]) == plain(lower.detect(drawn(120, 90)[None])[0])
    assert len(nudenet([grey, drawn(120, 90)])) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        drawn().astype(np.float32) / 255,
        drawn().astype(np.int64),
        drawn()[..., 0],
        drawn().transpose(2, 0, 1),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((0, 20, 3), np.uint8),
    ],
    ids=["float", "int64", "no channels", "channels first", "RGBA", "empty"],
)
@pytest.mark.parametrize("name", ["nudenet", "mini-judge", "mini-judge2"])
def test_what_would_be_seen_as_nothing_is_refused(nudenet, wrong, name):
    detector = nudenet if name == "nudenet" else load_detector(name)
    with pytest.raises(ValueError, match=r"picture 0 is .*uint8 RGB"):
        detector(wrong[None])


def test_positive_control_the_package_says_nothing_about_floats(monkeypatch, nudenet):
    """Floats in [0, 1] come out as black after scaling by 1 / 255 once more."""
    from nudenet import nudenet as module

    pixels = module._read_image(drawn().astype(np.float32) / 255)[0]
    assert pixels.max() <= 1 / 255 + 1e-6


def test_names_carry_channels_and_floor():
    assert nudenet_settings("") == ("bgr", PUBLISHED)
    assert nudenet_settings("rgb,floor=0.05") == ("rgb", Floors.at(0.05))
    found = load_detector("nudenet:rgb,floor=0.1")
    assert found.settings == {
        "weights": "nudenet-320n",
        "channels": "rgb",
        "considered": 0.1,
        "reported": 0.1,
        "overlap": 0.45,
    }
    for wrong in ("nudenet:grb", "nudenet:floor=2", "nudenet:floor=x", "nudenet:rgb;bgr"):
        with pytest.raises(RecipeError, match="is not one of rgb, bgr, floor=NUMBER"):
            load_detector(wrong)
    with pytest.raises(ValueError, match="channels 'gbr'"):
        NudeNet("gbr")


def test_stored_low_output_answers_for_published_rules(monkeypatch, nudenet, lower):
    """Every NudeNet rule gives the same verdict on low raw output as on the published one."""
    picture = drawn()[None]
    rules = [r for r in RULES.values() if {p.detector for p in r.parts} == {"nudenet"}]
    fired = 0
    for seed in range(20):
        output = made_output(seed, count=12) * np.float32(1 + seed % 4)
        output[0, 4:] = output[0, 4:].clip(0, 1)
        for detector in (nudenet, lower):
            monkeypatch.setattr(detector.detector, "onnx_session", Session(output))
        [a], [b] = nudenet.detect(picture), lower.detect(picture)
        for rule in rules:
            assert rule.fires(scores_of(a)) == rule.fires(scores_of(b)), rule.name
            fired += rule.fires(scores_of(a))
    assert 0 < fired < 20 * len(rules)


def test_a_lower_threshold_of_ones_own_sees_what_the_published_floor_hides():
    rule = find_rule("nudenet-l4@0.1")
    assert rule.detector == "nudenet:floor=0.1"
    found = (Detection(label=L4[0], score=0.15, box=(0, 0, 1, 1)),)
    assert rule.fires(scores_of(found))
    assert not find_rule("duo-4labels@0").fires(scores_of(found))
    assert find_rule("nudenet-l9-rgb@0.3").detector == "nudenet:rgb"


def test_detect_takes_any_detector():
    found = detect(lambda pictures: [{"a": 0.5, "b": 1}] * len(pictures), drawn()[None])
    assert found == [(Detection(label="a", score=0.5), Detection(label="b", score=1.0))]
