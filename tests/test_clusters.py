"""Concepts with several faces: pictures parted by what the judge sees, an embedding for each."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from ine.embedding import read_embedding
from ine.errors import IneError, OutputError, PicturesError, RecipeError
from ine.inversion import clusters as module
from ine.inversion import invert as loop
from ine.inversion.clusters import cluster_targets, features_of, k_means, run_clustered
from ine.inversion.run import RunOptions, run_inversion
from ine.judging.detectors import DETECTORS
from ine.judging.rules import RULES, Rule
from ine.pictures import write_png
from ine.recipe import check_recipe

RULE = "test-thing@0.5"


class Killed(Exception):
    """Stands for a kill at a certain moment."""


class Known:
    """A fake detector: the thing is everywhere, and the features are known by the order of asking.

    Not by the pixels: an untrained VAE gives back nothing of them.
    """

    def __init__(self, groups=(0, 0, 0, 1, 1) * 2):
        self.rows = np.eye(4, dtype=np.float32)[list(groups)]
        self.seen = 0

    def __call__(self, pictures):
        return [{"thing": 0.9} for _ in pictures]

    def features(self, pictures):
        assert pictures.shape[1:] == (16, 16, 3)
        assert pictures.dtype == np.uint8
        first, self.seen = self.seen, self.seen + len(pictures)
        return self.rows[first : self.seen]


class Scores:
    """A fake detector without features."""

    def __call__(self, pictures):
        return [{"thing": 0.9} for _ in pictures]


@pytest.fixture(autouse=True)
def thing_rule(monkeypatch):
    monkeypatch.setitem(
        RULES, RULE, Rule(name=RULE, detector="test", labels=("thing",), threshold=0.5)
    )
    monkeypatch.setitem(DETECTORS, "test", Known)


DATA = {
    "kind": "concept",
    "version": 1,
    "name": "thing",
    "base": "tiny",
    "words": {"explicit": ["thing"]},
    "pictures": {
        "prompts": ["a {}", "a {} here"],
        "nouns": ["apple", "dog"],
        "count": 10,
        "rule": RULE,
        "steps": 1,
        "batch": 5,
    },
    "inversion": {"vectors": 2, "steps": 4, "preview_every": 4, "preview_pictures": 2},
}


def a_recipe():
    return check_recipe(DATA, "thing.yaml")


@pytest.fixture(scope="session")
def ten_pictures(tmp_path_factory):
    """Pictures of noise; `Known` says that those numbered 3, 4, 8, 9 are of another kind."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(10):
        write_png(folder / f"{number}.png", random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return folder


def options_for(folder, **kwargs):
    return RunOptions(out=folder / "thing-neg.safetensors", trigger="thing-neg", **kwargs)


# --- k-means --------------------------------------------------------------------------------


def blobs(*sizes, spread=0.05, seed=0):
    """Return (features, group of each), the groups a unit apart, in mixed order."""
    random = np.random.default_rng(seed)
    groups = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = np.eye(len(sizes), 8)
    return centres[groups] + spread * random.standard_normal((len(groups), 8)), groups


@pytest.mark.parametrize("seed", range(5))
def test_obvious_groups_are_found_the_largest_first(seed):
    features, groups = blobs(30, 12, 5, seed=seed)
    labels = k_means(features, 3, seed)
    assert np.array_equal(labels, groups)  # made in the order of size


def test_groups_that_are_not_there_are_not_told_apart():
    """The control of the test above: where there is one group, the halves follow no label."""
    features, groups = blobs(30, 30, spread=50.0)
    agreement = (k_means(features, 2) == groups).mean()
    assert 0.2 < agreement < 0.8


def test_one_cluster_is_everything_and_each_picture_can_be_one():
    features, _ = blobs(3, 2)
    assert k_means(features, 1).tolist() == [0] * 5
    assert sorted(k_means(features, 5)) == [0, 1, 2, 3, 4]
    for wrong in (0, 6):
        with pytest.raises(ValueError, match="cannot be parted"):
            k_means(features, wrong)


def test_clusters_of_one_size_come_in_the_order_of_their_first_picture():
    features = np.array([[1.0], [0.0], [0.0], [1.0]])
    for seed in range(5):
        assert k_means(features, 2, seed).tolist() == [0, 1, 1, 0]


def test_the_result_is_a_local_optimum_and_better_than_chance():
    features = np.random.default_rng(0).standard_normal((60, 3))
    labels = k_means(features, 4)
    centres = np.stack([features[labels == n].mean(0) for n in range(4)])
    distances = ((features[:, None] - centres) ** 2).sum(2)
    assert np.array_equal(distances.argmin(1), labels)
    random = np.random.default_rng(1).integers(0, 4, 60)
    chance = sum(
        ((features[random == n] - features[random == n].mean(0)) ** 2).sum() for n in range(4)
    )
    assert distances.min(1).sum() < 0.7 * chance


def test_equal_pictures_leave_clusters_empty():
    features = np.repeat(np.eye(2), 5, axis=0)
    assert np.bincount(k_means(features, 3), minlength=3).tolist() == [5, 5, 0]


# --- the run --------------------------------------------------------------------------------


def test_each_group_gets_an_embedding_of_its_own(tiny_parts, ten_pictures, tmp_path):
    options = options_for(tmp_path, images=ten_pictures)
    seen, detector = [], Known()
    made, summary = run_clustered(
        tiny_parts,
        tiny_parts,
        a_recipe(),
        options,
        2,
        detector,
        on_step=lambda number, progress: seen.append((number, progress.step)),
    )
    assert [(one.letter, one.size) for one in made] == [("a", 6), ("b", 4)]
    labels = json.loads((options.folder / "clusters.json").read_text())["labels"]
    assert labels == [0, 0, 0, 1, 1] * 2
    assert seen == [(n, step) for n in (0, 1) for step in (1, 2, 3, 4)]
    for one, letter, size in zip(made, "ab", (6, 4), strict=True):
        found = read_embedding(tmp_path / f"thing-neg-{letter}.safetensors")
        assert found.trigger == f"thing-neg-{letter}"
        assert found.concept == "thing"
        assert found.metadata["ine.cluster"] == f"{letter} of 2"
        assert found.metadata["ine.cluster_size"] == str(size)
        assert found.metadata["ine.pictures"] == "10"
        assert torch.equal(found.vectors[0], one.result.vectors[0])
    assert not torch.equal(made[0].embedding.vectors[0], made[1].embedding.vectors[0])
    assert not options.out.exists()
    assert summary["pictures"] == {"tried": 10, "kept": 10}
    assert [c["size"] for c in summary["clusters"]] == [6, 4]
    assert json.loads((options.folder / "run.json").read_text()) == summary


def test_a_cluster_is_inverted_from_its_own_pictures_only(tiny_parts, ten_pictures, tmp_path):
    """A cluster's pictures alone in a folder give what the cluster gives."""
    made, _ = run_clustered(
        tiny_parts, tiny_parts, a_recipe(), options_for(tmp_path, images=ten_pictures), 2
    )
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in ten_pictures.iterdir():
        if int(path.stem) % 5 < 3:
            (mine / path.name).write_bytes(path.read_bytes())
    alone = replace(options_for(tmp_path / "alone", images=mine), trigger="thing-neg-a")
    embedding, _, _ = run_inversion(tiny_parts, tiny_parts, a_recipe(), alone, Known())
    # Not to the bit: the VAE was run on batches of another make-up.
    torch.testing.assert_close(
        embedding.vectors[0], made[0].embedding.vectors[0], atol=1e-3, rtol=0
    )
    assert (embedding.vectors[0] - made[1].embedding.vectors[0]).abs().max() > 1e-3


def test_one_cluster_gives_the_vectors_of_a_plain_run(tiny_parts, tmp_path):
    recipe = a_recipe()
    plain, _, _ = run_inversion(tiny_parts, tiny_parts, recipe, options_for(tmp_path / "plain"))
    made, _ = run_clustered(tiny_parts, tiny_parts, recipe, options_for(tmp_path / "one"), 1)
    assert torch.equal(made[0].embedding.vectors[0], plain.vectors[0])


def test_an_interrupted_run_ends_byte_equal(tiny_parts, ten_pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    whole, killed = (
        options_for(tmp_path / name, images=ten_pictures) for name in ("whole", "killed")
    )
    run_clustered(tiny_parts, tiny_parts, a_recipe(), whole, 2)

    def kill_in(cluster, step):
        def on_step(number, progress):
            if (number, progress.step) == (cluster, step):
                raise Killed

        return on_step

    for place in ((0, 3), (1, 1), (1, 4)):
        with pytest.raises(Killed):
            run_clustered(tiny_parts, tiny_parts, a_recipe(), killed, 2, on_step=kill_in(*place))
        assert not list(killed.out.parent.glob("*.safetensors"))
    seen, detector = [], Known()
    run_clustered(
        tiny_parts,
        tiny_parts,
        a_recipe(),
        killed,
        2,
        detector,
        on_step=lambda number, progress: seen.append((number, progress.step)),
    )
    assert seen == []  # both had reached their last step
    assert detector.seen == 0  # who belongs where is read back
    for letter in "ab":
        one, other = (
            o.out.with_name(f"thing-neg-{letter}.safetensors").read_bytes() for o in (whole, killed)
        )
        assert one == other


def test_another_number_of_clusters_keeps_the_pictures(tiny_parts, tmp_path, monkeypatch):
    options = options_for(tmp_path)
    monkeypatch.setattr(module, "SMALLEST", 1)
    run_clustered(tiny_parts, tiny_parts, a_recipe(), options, 2)
    with pytest.raises(OutputError, match="thing-neg-a"):
        run_clustered(tiny_parts, tiny_parts, a_recipe(), options, 3)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    made_again = []
    monkeypatch.setattr("ine.inversion.concept.sample_latents", lambda *a: made_again.append(a))
    three = Known((0, 0, 0, 1, 1, 0, 0, 2, 1, 1))
    made, _ = run_clustered(tiny_parts, tiny_parts, a_recipe(), options, 3, three)
    assert [one.size for one in made] == [5, 4, 1]
    assert not made_again


def test_features_are_asked_of_every_picture_once_in_order(tiny_parts, ten_pictures):
    from ine.inversion.images import read_folder

    pictures = read_folder(tiny_parts, ten_pictures)
    detector = Known()
    features = features_of(tiny_parts, pictures, detector, 4)
    assert detector.seen == 10  # the last batch is a smaller one
    assert np.array_equal(features, detector.rows)


# --- what cannot be ---------------------------------------------------------------------------


def test_errors_come_before_pictures_are_made(tiny_parts, tmp_path):
    recipe, options = a_recipe(), options_for(tmp_path)

    def run(clusters, detector=None, **fields):
        given = replace(options, **fields)
        return run_clustered(tiny_parts, tiny_parts, recipe, given, clusters, detector)

    for clusters in (0, -1, 27):
        with pytest.raises(IneError, match="give 1 to 26"):
            run(clusters)
    with pytest.raises(PicturesError, match=r"3 clusters of 10 pictures.*give 2 clusters or fewer"):
        run(3)
    with pytest.raises(RecipeError, match=r"'test' of rule test-thing@0.5.*no image features"):
        run(2, Scores())
    with pytest.raises(IneError, match="trigger"):
        run(2, trigger="Thing")
    (tmp_path / "thing-neg-b.safetensors").write_bytes(b"x")
    with pytest.raises(OutputError, match="thing-neg-b"):
        run(2)
    assert not options.folder.exists()


def test_a_tiny_or_empty_cluster_is_refused(tiny_parts, ten_pictures, tmp_path):
    options = options_for(tmp_path, images=ten_pictures)
    for groups, sizes in (([0, 1] + [0] * 8, "9, 1"), ([0] * 10, "10, 0")):
        with pytest.raises(PicturesError, match=rf"have {sizes} members.*at least 4"):
            run_clustered(tiny_parts, tiny_parts, a_recipe(), options, 2, Known(groups))
    with pytest.raises(PicturesError, match="5 clusters of 10 pictures"):
        run_clustered(tiny_parts, tiny_parts, a_recipe(), options, 5)


def test_names_of_clusters_are_triggers_of_their_own(tmp_path):
    targets = cluster_targets(options_for(tmp_path), 3)
    assert list(targets) == ["thing-neg-a", "thing-neg-b", "thing-neg-c"]
    assert [p.stem for p in targets.values()] == list(targets)


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump({**DATA, "base": str(tiny_folder)}))
    return tmp_path


def test_the_command_writes_one_file_per_cluster(run_ine, place, ten_pictures):
    command = ("invert", "--concept", "thing.yaml", "--images", ten_pictures, "--clusters", 2)
    done = run_ine(*command)
    assert done.exit_code == 0, done.stderr
    assert "cluster a of 2: 6 pictures" in done.stdout
    assert "cluster b of 2: 4 pictures" in done.stdout
    assert "wrote thing-neg-b.safetensors: 2 x 32, trigger 'thing-neg-b'" in done.stdout
    assert (
        "--negative-embedding thing-neg-a.safetensors --negative-embedding thing-neg-b.safetensors"
    ) in done.stdout
    assert sorted(p.name for p in place.glob("*.safetensors")) == [
        "thing-neg-a.safetensors",
        "thing-neg-b.safetensors",
    ]
    first = (place / "thing-neg-a.safetensors").read_bytes()
    assert run_ine(*command).exit_code == 9
    done = run_ine(*command, "--force", "--purge", "--json")
    assert done.exit_code == 0, done.stderr
    assert [c["trigger"] for c in json.loads(done.stdout)["clusters"]] == [
        "thing-neg-a",
        "thing-neg-b",
    ]
    assert (place / "thing-neg-a.safetensors").read_bytes() == first
    assert not list(place.glob("*.run"))


def test_a_dry_run_names_the_files_of_all_clusters(run_ine, place):
    done = run_ine("invert", "--concept", "thing.yaml", "--clusters", 2, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "# trigger: thing-neg-a\n# out: thing-neg-a.safetensors" in done.stdout
    assert "# trigger: thing-neg-b\n# out: thing-neg-b.safetensors" in done.stdout
    refused = run_ine("invert", "--concept", "thing.yaml", "--clusters", 0)
    assert refused.exit_code == 2
