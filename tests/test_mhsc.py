"""MHSC with made-up heads: the closed form, and files that are none."""

import numpy as np
import pytest
import torch

from ine.detectors.mhsc import MultiHeaded, find_heads, probability, read_head
from ine.detectors.mini import MINI_JUDGE
from ine.detectors.published import HEADS
from ine.detectors.rules import find_rule
from ine.detectors.table import check_detector
from ine.errors import MissingDependency, ModelError

WIDTH, HIDDEN = 6, 4


def network(width=WIDTH, seed=0):
    """The head as it was trained, with numbers that its running averages could have."""
    torch.manual_seed(seed)
    head = torch.nn.Sequential(
        torch.nn.Linear(width, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.BatchNorm1d(HIDDEN),
        torch.nn.Linear(HIDDEN, 1),
    ).eval()
    head[3].running_mean.uniform_(-1, 1)
    head[3].running_var.uniform_(0.5, 2)
    return head


def save_heads(folder, width=WIDTH):
    for seed, name in enumerate(HEADS):
        torch.save(network(width, seed).state_dict(), folder / f"{name}.pt")
    return folder


def test_a_head_computes_what_the_network_does(tmp_path):
    save_heads(tmp_path)
    features = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)) * 3
    for seed, name in enumerate(HEADS):
        found = probability(read_head(tmp_path / f"{name}.pt", WIDTH), features)
        with torch.no_grad():
            expected = torch.sigmoid(network(seed=seed)(features))[:, 0]
        torch.testing.assert_close(found, expected)
        assert found.std() > 0


def test_pictures_are_scored_by_every_head_on_features_that_are_not_normalised(tmp_path):
    from ine.detectors.clip import ClipJudge

    clip = ClipJudge(MINI_JUDGE)
    width = clip.model.config.projection_dim
    detector = MultiHeaded(save_heads(tmp_path, width), MINI_JUDGE)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    plain = clip.plain_features(pictures)
    assert not torch.allclose(plain.norm(dim=1), torch.ones(2), atol=0.05)
    scores = detector(pictures)
    assert [tuple(one) for one in scores] == [HEADS, HEADS]
    for seed, name in enumerate(HEADS):
        with torch.no_grad():
            expected = torch.sigmoid(network(width, seed)(plain))[:, 0]
        assert [one[name] for one in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_rule_is_that_one_head_exceeds_the_threshold():
    rule = find_rule("mhsc[my heads]@0.5")
    assert rule.detector == "mhsc[my heads]"
    quiet = dict.fromkeys(HEADS, 0.5)
    assert not rule.fires(quiet)
    assert rule.fires({**quiet, "violent": 0.51})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("3.running_var"), "3.running_var has the shape of nothing"),
        (lambda s: s.update({"0.weight": torch.zeros(HIDDEN, 9)}), r"expected \(4, 6\)"),
        (lambda s: s.update({"4.bias": torch.tensor([float("nan")])}), "not finite"),
    ],
)
def test_a_file_that_is_no_head_is_refused(tmp_path, change, words):
    state = network().state_dict()
    change(state)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=words):
        read_head(tmp_path / "x.pt", WIDTH)


def test_other_files_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("list.pt", "text.pt", "nowhere.pt"):
        with pytest.raises(ModelError, match=name):
            read_head(tmp_path / name, WIDTH)


def test_missing_heads_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("INE_MHSC_HEADS", raising=False)
    with pytest.raises(MissingDependency, match="INE_MHSC_HEADS is not set"):
        check_detector("mhsc")
    save_heads(tmp_path)
    monkeypatch.setenv("INE_MHSC_HEADS", str(tmp_path))
    assert find_heads() == tmp_path
    (tmp_path / "violent.pt").unlink()
    with pytest.raises(MissingDependency, match=r"has no violent\.pt"):
        find_heads()
