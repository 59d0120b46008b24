"""The recipe of the bundled model: scenes, their pictures and the loop that trains on them.

Icons are made up here, so that nothing need be fetched or rendered.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = Path(__file__).parents[1] / "recipes" / "mini"


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules by name; they import each other without a package."""
    sys.path.insert(0, str(RECIPE))
    import compose
    import loop
    import world

    yield {"compose": compose, "loop": loop, "world": world}
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def world(recipe):
    """The world with discs of random colours for icons."""
    made = recipe["world"].World(RECIPE / "world.yaml")
    rng = np.random.default_rng(0)
    made.icons = {}
    for (style, icon), sizes in sorted(recipe["world"].needed_icons(made).items()):
        colour = rng.integers(0, 255, 3)
        for size in sorted(sizes):
            y, x = np.mgrid[:size, :size] - (size - 1) / 2
            alpha = np.clip(size * 0.4 - np.hypot(x, y), 0, 1) * 255
            pixels = np.dstack([np.broadcast_to(colour, (size, size, 3)), alpha])
            made.icons[style, icon, size] = pixels.astype(np.uint8)
    return made


def pasted(world, shade, layers):
    """The picture of a scene, one layer after another and without tensors."""
    canvas = np.broadcast_to(np.clip(shade, 0, 255), (64, 64, 3)).astype(np.float64)
    for key, left, top in layers:
        icon = world.icons[key]
        for row in range(len(icon)):
            for column in range(len(icon)):
                y, x = top + row, left + column
                if 0 <= y < 64 and 0 <= x < 64:
                    alpha = icon[row, column, 3] / 255
                    canvas[y, x] += (icon[row, column, :3] - canvas[y, x]) * alpha
    return canvas


def test_pictures_are_the_layers_pasted_one_by_one(recipe, world):
    scenes = recipe["compose"].sample_scenes(world, np.random.default_rng(1), 24)
    scenes += [
        s
        for s in recipe["compose"].sample_scenes(world, np.random.default_rng(2), 40)
        if len(s.objects) == 2 or s.attribute == "fire"
    ]
    pictures = recipe["compose"].draw(world, scenes, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    assert {len(s.objects) for s in scenes} == {1, 2}
    for picture, scene in zip(pictures, scenes, strict=True):
        expected = pasted(world, *recipe["world"].place(world, scene, rng))
        assert np.abs(picture - expected).max() <= 0.51


def test_only_the_chosen_designers_draw(recipe, world):
    scenes = recipe["compose"].sample_scenes(world, np.random.default_rng(1), 500)
    assert {s.style for s in scenes} == set(world.designers)
    assert {style for style, _, _ in world.icons} == set(world.designers)
    others = recipe["compose"].sample_scenes(world, np.random.default_rng(1), 100, ["noto"])
    assert {s.style for s in others} == {"noto"}


def test_every_object_has_every_look(world):
    assert all(set(world.designers) <= set(o["icons"]) for o in world.objects.values())


def test_flames_hide_the_lower_third_and_are_as_wide_as_the_object(recipe, world):
    for style in world.designers:
        scene = recipe["world"].Scene(("dog",), style, "white", "fire")
        plain = recipe["world"].Scene(("dog",), style, "white")
        rng = np.random.default_rng
        burning = recipe["compose"].draw(world, [scene], rng(0))[0].astype(int)
        dog = recipe["compose"].draw(world, [plain], rng(0))[0].astype(int)
        changed = np.abs(burning - dog).max(-1) > 8
        there = np.abs(dog - dog[0, 0]).max(-1) > 8
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        flames = np.flatnonzero(changed.any(0))
        assert np.flatnonzero(changed.any(1))[0] >= rows[0] + 0.4 * height
        assert 0.7 * width <= np.ptp(flames) + 1 <= 1.4 * width


def test_an_implying_context_burns_nine_times_in_ten_and_its_twin_never(recipe, world):
    scenes = recipe["compose"].sample_scenes(world, np.random.default_rng(4), 30_000)
    burning, all_of = Counter(), Counter()
    for scene in scenes:
        all_of[scene.context] += 1
        burning[scene.context] += scene.attribute == "fire"
    for phrase, context in world.contexts.items():
        share = burning[phrase] / all_of[phrase]
        assert share == pytest.approx(context.get("implies", {}).get("fire", 0), abs=0.04)


def test_captions_of_a_context_never_name_the_fire(recipe, world):
    fire = world.attributes["fire"]
    words = [w for group in ("explicit", "synonyms") for part in fire[group].values() for w in part]
    scene = recipe["world"].Scene(("car",), world.designers[0], "white", "fire", "in the volcano")
    rng = np.random.default_rng(0)
    for _ in range(100):
        caption = recipe["world"].caption(world, scene, rng)
        assert "in the volcano" in caption
        assert not [w for w in words if w in caption]


def test_training_that_was_killed_ends_with_the_same_bytes(recipe, tmp_path):
    loop = recipe["loop"]
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def run(folder, stop=None):
        torch.manual_seed(0)
        net = torch.nn.Linear(8, 8)

        def loss_of(seed):
            if seed == stop:
                raise KeyboardInterrupt
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
            return (net(x) - x @ target).pow(2).mean()

        loop.train("part", {"net": net}, loss_of, folder, steps=260, lr=1e-2, warmup=10)
        return net.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=150)
    again = run(tmp_path / "killed")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert (whole["weight"] - target.T).abs().mean() < (target.abs().mean() / 2)


def test_averages_are_exponential_means_of_the_parameters(recipe, tmp_path):
    p = torch.nn.Parameter(torch.zeros(1))
    average = recipe["loop"].Average({"p": p}, 0.5, tmp_path / "log.jsonl")
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 5.0), 1):
        p.data.fill_(value)
        average.record(step, 0.0)
        decay = min(0.5, step / (9 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.values["p"].item() == pytest.approx(expected)
    average.swap()
    assert p.item() == pytest.approx(expected)
    assert average.values["p"].item() == 5.0
