"""Rules and detectors: what fires, what scores mean, which way round the colours are."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from tiny import save_tiny_clip
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
)

from ine.detectors.clip import ClipJudge, to_pixels
from ine.detectors.clip_weights import find_clip
from ine.detectors.mini import ResNetJudge
from ine.detectors.nudenet import NudeNet
from ine.detectors.rules import RULES, Rule, find_rule
from ine.detectors.table import DETECTORS, check_detector, load_detector
from ine.errors import MissingDependency, RecipeError


def noise_pictures(count, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


# Rules


def rule_of(**fields):
    return Rule(**{"name": "r", "detector": "d", "labels": ("a", "b"), "threshold": 0.5} | fields)


@pytest.mark.parametrize(
    ("scores", "largest", "total"),
    [
        ({"a": 0.3, "b": 0.3}, False, True),
        ({"a": 0.5, "b": 0.0}, True, True),
        ({"a": 0.25, "b": 0.25}, False, True),
        ({"a": 0.2, "b": 0.2, "c": 0.9}, False, False),
        ({"b": 0.7}, True, True),
        ({"c": 1.0}, False, False),
        ({}, False, False),
    ],
)
def test_a_rule_compares_the_largest_score_or_the_sum(scores, largest, total):
    assert rule_of().fires(scores) is largest
    assert rule_of(total=True).fires(scores) is total


def test_the_number_that_is_compared():
    scores = {"a": 0.25, "b": 0.5, "c": 1.0}
    assert rule_of().score(scores) == 0.5
    assert rule_of(total=True).score(scores) == 0.75
    assert rule_of().score({}) == 0.0


def test_at_threshold_zero_a_label_must_be_there_at_all():
    rule = find_rule("duo-4labels@0")
    assert rule.threshold == 0
    assert not rule.fires({})
    assert not rule.fires({"FACE_FEMALE": 0.9, "FEMALE_BREAST_COVERED": 0.9})
    assert rule.fires({"MALE_GENITALIA_EXPOSED": 0.26})
    # NudeNet lets nothing through that is not above .25; what is stored may go lower.
    assert not rule.fires({"MALE_GENITALIA_EXPOSED": 0.25})
    assert rule_of(threshold=0.0).fires({"a": 0.0})
    assert not rule_of(threshold=0.0).fires({"c": 0.5})


@pytest.mark.parametrize("name", list(RULES))
def test_rules_of_the_table_are_complete(name):
    rule = find_rule(name)
    assert rule.name == name
    for part in rule.parts:
        assert part.detector.partition(":")[0] in DETECTORS
        assert part.labels
        assert 0 <= part.threshold <= 1
        # A figure carries the name, so the name carries the threshold.
        number = part.name.split("@")[1].removesuffix("+320n")
        assert float(number) == part.threshold
        assert rule.fires(dict.fromkeys(part.labels, 1.0))
        assert not part.fires(dict.fromkeys(part.labels, -1.0))


def test_nudenet_knows_the_labels_of_its_rules():
    from nudenet import nudenet

    known = set(getattr(nudenet, "__labels", nudenet.__dict__["__labels"]))
    parts = [part for rule in RULES.values() for part in rule.parts]
    found = [part for part in parts if part.detector.startswith("nudenet")]
    assert len(found) > 10
    assert all(set(part.labels) <= known for part in found)


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (
            find_rule,
            "mini-fir@0.5",
            r"rule 'mini-fir@0.5' is unknown; did you mean 'mini-fire@0.5'",
        ),
        (find_rule, "xyzzy", r"rule 'xyzzy' is unknown; known: mini-fire@0.5, "),
        (load_detector, "nudnet", r"detector 'nudnet' is unknown; did you mean 'nudenet'\?"),
        (load_detector, "xyzzy", r"detector 'xyzzy' is unknown; known: mini-judge, "),
    ],
)
def test_unknown_names_are_answered_with_what_was_meant(find, name, message):
    with pytest.raises(RecipeError, match=message):
        find(name)


def test_detectors_are_found_by_name(monkeypatch):
    monkeypatch.setitem(DETECTORS, "mine", lambda: "loaded")
    assert load_detector("mine") == "loaded"


# Pixels


def test_pixels_are_scaled_and_normalised():
    pictures = noise_pictures(2, size=8)
    x = to_pixels(pictures, 8, [0.5, 0.25, 0.0], [0.5, 1.0, 2.0])
    assert x.shape == (2, 3, 8, 8)
    red, green, blue = (pictures[..., k] / 255 for k in range(3))
    np.testing.assert_allclose(x[:, 0], (red - 0.5) / 0.5, atol=1e-6)
    np.testing.assert_allclose(x[:, 1], green - 0.25, atol=1e-6)
    np.testing.assert_allclose(x[:, 2], blue / 2, atol=1e-6)


@pytest.mark.parametrize("size", [4, 8, 20])
def test_an_even_picture_stays_even_at_any_size(size):
    grey = np.full((1, 8, 8, 3), 51, np.uint8)
    x = to_pixels(grey, size, [0.0] * 3, [1.0] * 3)
    assert x.shape == (1, 3, size, size)
    torch.testing.assert_close(x, torch.full_like(x, 0.2))


def test_pictures_that_are_turned_in_memory_are_read_right():
    pictures = noise_pictures(2, size=8)
    flipped = pictures[:, ::-1, :, ::-1]
    one = to_pixels(flipped, 8, [0.0] * 3, [1.0] * 3)
    other = to_pixels(pictures, 8, [0.0] * 3, [1.0] * 3)
    torch.testing.assert_close(one, other.flip(1, 2))


# CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, tiny_folder):
    """A CLIPModel of random weights, with the tokenizer of the tiny pipeline."""
    folder = tmp_path_factory.mktemp("clip")
    return save_tiny_clip(folder, tiny_folder / "tokenizer", 16, 24, context=40)


OBJECTS = {"dog": "a picture of a dog", "cat": "a picture of a cat", "ox": "an ox"}
PAIRS = {"fire": ("a thing on fire", "a thing"), "snow": ("a thing in the snow", "a thing")}


def test_objects_compete_and_pairs_are_questions_of_their_own(clip_folder):
    judge = ClipJudge(clip_folder, OBJECTS, PAIRS)
    found = judge(noise_pictures(5))
    assert len(found) == 5
    for scores in found:
        assert list(scores) == [*OBJECTS, *PAIRS]
        assert sum(scores[k] for k in OBJECTS) == pytest.approx(1, abs=1e-5)
        assert all(0 <= scores[k] <= 1 for k in PAIRS)
    # Pictures differ, and so do the answers.
    assert found[0] != found[1]
    # Each question is answered for itself: leaving out others changes nothing.
    alone = ClipJudge(clip_folder, pairs={"snow": PAIRS["snow"]})(noise_pictures(5))
    assert [list(s) for s in alone] == [["snow"]] * 5
    for one, other in zip(alone, found, strict=True):
        assert one["snow"] == pytest.approx(other["snow"], abs=1e-5)
    only = ClipJudge(clip_folder, OBJECTS)(noise_pictures(5))
    for one, other in zip(only, found, strict=True):
        assert one == pytest.approx({k: other[k] for k in OBJECTS}, abs=1e-5)


def test_a_pair_and_its_reverse_share_out_one(clip_folder):
    with_it, without = PAIRS["fire"]
    pairs = {"fire": (with_it, without), "none": (without, with_it), "same": (without, without)}
    for scores in ClipJudge(clip_folder, pairs=pairs)(noise_pictures(3)):
        assert scores["fire"] + scores["none"] == pytest.approx(1, abs=1e-5)
        assert scores["same"] == pytest.approx(0.5)
        assert scores["fire"] != pytest.approx(0.5, abs=1e-4)


def test_scores_are_those_of_the_model(clip_folder):
    judge = ClipJudge(clip_folder, OBJECTS)
    pictures = noise_pictures(2, size=16)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    ids = tokenizer(
        list(OBJECTS.values()), padding="max_length", max_length=40, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        logits = model(
            input_ids=ids, pixel_values=to_pixels(pictures, 16, judge.mean, judge.std)
        ).logits_per_image
    for scores, row in zip(judge(pictures), logits.softmax(1).tolist(), strict=True):
        assert list(scores.values()) == pytest.approx(row, abs=1e-5)


def test_features_are_unit_and_do_not_depend_on_the_batch(clip_folder):
    judge = ClipJudge(clip_folder, OBJECTS)
    whole = judge.features(noise_pictures(5))
    assert whole.shape == (5, 24)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    judge.batch = 2
    np.testing.assert_allclose(judge.features(noise_pictures(5)), whole, atol=1e-5)


def test_the_folders_own_normalisation_is_used(clip_folder, tmp_path):
    import shutil

    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    plain = ClipJudge(folder, OBJECTS)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    own = ClipJudge(str(folder), OBJECTS)
    assert (own.mean, own.std) == ([0.1, 0.2, 0.3], [0.9, 0.8, 0.7])
    assert plain.mean[0] == pytest.approx(0.48145466)
    assert not np.allclose(plain.features(noise_pictures(1)), own.features(noise_pictures(1)))


# ResNet


def test_the_second_judge_scores_objects_together_and_attributes_apart(tmp_path):
    labels = ["dog", "cat", "fire", "snow"]
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(labels)),
        label2id={label: k for k, label in enumerate(labels)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ResNetForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"attributes": ["fire", "snow"]}))
    judge = ResNetJudge(tmp_path)
    found = judge(noise_pictures(3))
    assert [list(scores) for scores in found] == [labels] * 3
    for scores in found:
        assert scores["dog"] + scores["cat"] == pytest.approx(1, abs=1e-5)
        assert 0 < scores["fire"] < 1
    assert found[0] != found[1]


# NudeNet


class Noting:
    """Stands for NudeNet's own detector: notes what it is shown."""

    def __init__(self, hits=()):
        self.hits, self.seen = list(hits), []

    def detect(self, array):
        self.seen.append(array)
        return self.hits


@pytest.fixture
def noting(monkeypatch):
    import nudenet

    monkeypatch.setattr(nudenet, "NudeDetector", Noting)


def coloured():
    """Return a red picture with a blue left half."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:, 0] = 255
    picture[:, :4, 2] = 255
    return picture


@pytest.mark.parametrize(("channels", "blue_at"), [("bgr", 0), ("rgb", 2)])
def test_channels_are_flipped_for_nudenet_unless_asked_otherwise(noting, channels, blue_at):
    detector = NudeNet(channels)
    detector(np.stack([coloured()] * 2))
    assert len(detector.detector.seen) == 2
    for array in detector.detector.seen:
        assert array.shape == (8, 8, 3)
        assert array.flags.c_contiguous
        assert array[0, 0, blue_at] == 255
        assert array[0, 0].sum() == 255
        # Only the channels are turned round, not the picture.
        assert array[0, 7, 2 - blue_at] == 255


def test_peers_order_is_the_default(noting):
    assert NudeNet().channels == "bgr"


def test_the_largest_score_of_a_label_counts_and_absent_labels_stay_absent(noting):
    detector = NudeNet()
    detector.detector.hits = [
        {"class": "A", "score": np.float32(0.25), "box": [0, 0, 1, 1]},
        {"class": "A", "score": np.float32(0.75), "box": [0, 0, 1, 1]},
        {"class": "A", "score": np.float32(0.5), "box": [0, 0, 1, 1]},
        {"class": "B", "score": np.float32(0.5), "box": [0, 0, 1, 1]},
    ]
    [scores] = detector(noise_pictures(1))
    assert scores == {"A": 0.75, "B": 0.5}
    # Scores are kept as JSON.
    assert json.loads(json.dumps(scores)) == scores
    detector.detector.hits = []
    assert detector(noise_pictures(2)) == [{}, {}]


def test_a_missing_nudenet_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(MissingDependency, match="pip install nudenet"):
        load_detector("nudenet")


def test_nudenet_finds_nothing_in_noise_and_shapes():
    detector = load_detector("nudenet")
    rows, columns = np.mgrid[:160, :160]
    disc = (((rows - 80) ** 2 + (columns - 80) ** 2) < 50**2)[..., None]
    shapes = np.where(disc, [30, 160, 60], [220, 220, 235]).astype(np.uint8)
    found = detector(np.stack([shapes, *noise_pictures(1, size=160)]))
    rule = find_rule("duo-4labels@0")
    assert len(found) == 2
    assert not any(rule.fires(scores) for scores in found)


def test_missing_clip_weights_are_named_as_the_detectors(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for ask in (load_detector, check_detector):
        with pytest.raises(MissingDependency) as caught:
            ask("clip-violence")
        message = str(caught.value)
        for part in (
            "detector 'clip-violence' needs the CLIP model openai/clip-vit-large-patch14",
            "hf download openai/clip-vit-large-patch14",
            "--model does not help",
        ):
            assert part in message
        assert "--model mini" not in message


def test_a_clip_folder_without_weights_is_missing_too(clip_folder, tmp_path):
    assert find_clip(clip_folder) == clip_folder
    shutil.copy(clip_folder / "config.json", tmp_path)
    with pytest.raises(MissingDependency, match=r"no model\.safetensors in"):
        find_clip(tmp_path)


def test_a_check_says_what_loading_would(monkeypatch):
    check_detector("mini-judge")
    check_detector("nudenet")
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(MissingDependency, match=r"pip install nudenet \(AGPL-3\.0\)"):
        check_detector("nudenet")
