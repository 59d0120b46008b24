"""Resumable units and the optimiser loop: what a kill and a damaged file do, for every kind."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ine.calibration.examples import ExampleMaker, Kind
from ine.detectors.rules import find_rule
from ine.errors import IneError, PicturesError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.negative import Negative
from ine.inversion.history import state_file
from ine.inversion.images import PICTURES, ConceptPictures
from ine.optim import StateFile, minimise
from ine.sampling import SamplerSettings
from ine.store.pictures import Store
from ine.store.tensors import UnitFiles
from ine.store.units import Damaged, Missing, OtherKey, key_of

# Units


@dataclass
class Number:
    value: int


NUMBERS = UnitFiles(
    what="a number",
    entry="number",
    pack=lambda unit: ({"x": torch.full((2,), unit.value)}, {"value": unit.value}),
    unpack=lambda tensors, notes: Number(int(tensors["x"][1])),
)


def test_a_unit_is_made_once_per_key(tmp_path):
    made = []

    def make():
        made.append(1)
        return Number(len(made))

    path = tmp_path / "a" / "x.safetensors"
    assert [NUMBERS.get(path, key, make).value for key in ("one", "one", "two", "two")] == [
        *(1, 1, 2, 2)
    ]
    assert NUMBERS.read(path, "one") is None
    assert NUMBERS.get(None, "two", make).value == 3
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_a_unit_of_another_format_is_made_again(tmp_path):
    newer = UnitFiles(**{**vars(NUMBERS), "format": "2"})
    newer.write(Number(1), tmp_path / "x", "k")
    assert newer.read(tmp_path / "x", "k") == Number(1)
    assert UnitFiles(**{**vars(NUMBERS), "format": "3"}).read(tmp_path / "x", "k") is None


# One rule for all units


def test_a_key_depends_on_every_name_and_value():
    keys = [key_of(a=1, b=[2]), key_of(a=1, b=[3]), key_of(a=1, c=[2]), key_of(a=1)]
    assert len(set(keys)) == 4
    assert key_of(b=[2], a=1) == keys[0]
    assert len(keys[0]) == 64


def end_of(read):
    """The way in which reading ends: the kind of `Missing`, or None where there is something."""
    try:
        read()
    except Missing as error:
        return type(error)
    return None


def test_units_of_pictures_are_missing_of_another_key_or_damaged(tmp_path):
    store, key, other = Store(tmp_path), "a" * 64, "aa" + "b" * 62
    reads = {
        ".zip": lambda: (store.about(key), store.pictures(key)),
        ".json": lambda: store.look(key, "x", {"a": 1}),
        ".npz": lambda: store.numbers(key, "x"),
    }
    assert {end_of(read) for read in reads.values()} == {Missing}
    store.write_unit(key, np.zeros((1, 8, 8, 3), dtype=np.uint8), [{}], [1], {})
    store.write_look(key, "x", {"a": 1}, [()])
    store.write_numbers(key, "x", [1.0])
    assert {end_of(read) for read in reads.values()} == {None}
    store.unit_path(key).replace(store.unit_path(other))
    assert end_of(lambda: store.about(other)) is OtherKey
    store.unit_path(other).replace(store.unit_path(key))
    assert end_of(lambda: store.look(key, "x", {"a": 2})) is OtherKey
    for suffix, read in reads.items():
        [path] = tmp_path.rglob(f"*{suffix}")
        path.write_bytes(path.read_bytes()[:-7])
        assert end_of(read) is Damaged, suffix


# Every kind of cache, damaged


def pictures_file(path):
    some = ConceptPictures(
        mean=torch.zeros(1, 4, 2, 2), std=torch.ones(1, 4, 2, 2), captions=None, names=("a",)
    )
    PICTURES.write(some, path, "k")
    return lambda: PICTURES.read(path, "k")


def state_of_inversion(path):
    tensors = {f"{kind}.0": torch.zeros(2, 8) for kind in ("vectors", "first", "second")}
    about = {"key": "k", "step": 5, "previews": [], "best": None}
    losses = torch.zeros(5, dtype=torch.float64)
    save_file({**tensors, "losses": losses}, path, {"state": json.dumps(about)})
    return lambda: state_file(path, "k").read()


def state_of_an_eraser(path):
    parameters = {"a.weight": torch.nn.Parameter(torch.ones(3))}
    optimiser = torch.optim.Adam(parameters.values())

    def go():
        minimise(
            *("esd", parameters, optimiser, lambda step, part: parameters["a.weight"].sum(), 1),
            advice="",
            state=StateFile(path=path, key="k"),
        )

    go()
    return go


def examples_file(path, parts):
    maker = ExampleMaker(
        parts=parts,
        settings=SamplerSettings(steps=2, batch=2),
        queries=(0.5, 0.9),
        rule=find_rule("mini-fire@0.5"),
        detector=lambda pictures: [{"fire": 1.0}] * len(pictures),
        seed=0,
        folder=path.parent,
        key="k",
        progress=lambda pictures: None,
    )
    kind = Kind(name="x", prompts=["a dog"], guidance=ClassifierFree(Negative("")))
    maker.examples(kind)
    return lambda: maker.examples(kind)


KINDS = {
    "pictures": (lambda path, parts: pictures_file(path), PicturesError),
    "inversion": (lambda path, parts: state_of_inversion(path), IneError),
    "eraser": (lambda path, parts: state_of_an_eraser(path), IneError),
    "examples": (examples_file, PicturesError),
}


def without_a_tensor(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "no metadata": lambda path: save_file(load_file(path), path),
    "a tensor is missing": without_a_tensor,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_error_that_names_it_and_says_what_to_do(
    tiny_parts, tmp_path, kind, damage
):
    path = tmp_path / "x-000000.safetensors"
    build, error = KINDS[kind]
    read = build(path, tiny_parts)
    read()
    DAMAGES[damage](path)
    with pytest.raises(error, match=r"x-000000\.safetensors: is not .*damaged; delete it"):
        read()


def test_examples_of_earlier_versions_are_read(tiny_parts, tmp_path):
    """They had their key as the only entry of the metadata."""
    from safetensors import safe_open

    path = tmp_path / "x-000000.safetensors"
    read = examples_file(path, tiny_parts)
    with safe_open(path, "pt") as file:
        key = json.loads(file.metadata()["unit"])["key"]
    tensors = load_file(path)
    tensors["features.0"] += 1
    save_file(tensors, path, {"key": key})
    assert torch.equal(read().features[0], tensors["features.0"])
    save_file(tensors, path, {"key": "another"})
    assert not torch.equal(read().features[0], tensors["features.0"])


# The loop


@dataclass
class Losses:
    found: list = field(default_factory=list)

    def record(self, step, loss):
        self.found.append(loss)

    def pack(self):
        return {"losses": torch.tensor(self.found, dtype=torch.float64)}, {"count": len(self.found)}

    def unpack(self, tensors, notes):
        self.found = tensors["losses"].tolist()
        assert notes["count"] == len(self.found)


class Killed(Exception):
    """Stands for a kill."""


def learn(path=None, kill=None, steps=7, key="k", **more):
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    losses, seen = Losses(), []

    def loss_of(step, part):
        noise = torch.randn(5, generator=torch.Generator().manual_seed(10 * step + part))
        return (parameter - noise).square().mean()

    def on_step(done, loss):
        seen.append(done)
        if done == kill:
            raise Killed

    minimise(
        "learning",
        {"w": parameter},
        torch.optim.AdamW([parameter], lr=0.1),
        loss_of,
        steps,
        advice="use less",
        state=StateFile(path=path, key=key, every=3, prefix="p.", **more),
        history=losses,
        accumulation=2,
        lr_of=lambda step: 0.1 / (step + 1),
        on_step=on_step,
    )
    return parameter.detach(), losses.found, seen


@pytest.mark.parametrize("kills", [(1,), (3,), (4, 5), (6, 7)])
def test_a_killed_loop_ends_byte_equal(tmp_path, kills):
    whole, losses, seen = learn(tmp_path / "whole")
    assert seen == [*range(1, 8)]
    for kill in kills:
        with pytest.raises(Killed):
            learn(tmp_path / "killed", kill)
    again, others, rest = learn(tmp_path / "killed")
    assert torch.equal(again, whole)
    assert others == losses
    assert rest == [*range({1: 1, 3: 4, 5: 4, 7: 8}[kills[-1]], 8)]
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_learning_rate_and_the_parts_of_a_step_count():
    assert not torch.equal(learn()[0], learn(steps=6)[0])
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.0)
    parts = []
    minimise(
        *(
            "x",
            {"w": parameter},
            optimiser,
            lambda s, p: parts.append((s, p)) or parameter.sum(),
            2,
        ),
        advice="",
        accumulation=2,
        lr_of=lambda step: 0.25,
    )
    assert parts == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert parameter.item() == pytest.approx(-0.5)


def test_a_state_of_another_run_is_refused_unless_forced(tmp_path):
    learn(tmp_path / "state", key="one")
    with pytest.raises(IneError, match=r"belongs to a run with other settings.*--force"):
        learn(tmp_path / "state", key="two")
    assert learn(tmp_path / "state", key="two", force=True)[2] == [*range(1, 8)]


def test_a_state_of_other_shapes_is_refused(tmp_path):
    learn(tmp_path / "state")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.Adam([parameter])
    state = StateFile(path=tmp_path / "state", key="k", prefix="p.")
    with pytest.raises(IneError, match="is not a state of `ine unlearn`, or is damaged"):
        state.restore({"w": parameter}, optimiser)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda w: w.sum() * float("inf"), "the loss is nan"),
        (lambda w: w.sqrt().sum(), "the gradient is not finite"),
    ],
)
def test_what_is_not_finite_stops_the_loop(tmp_path, loss, what):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.Adam([parameter])
    with pytest.raises(IneError, match=f"x: {what} at step 1 of 3; use less"):
        minimise(
            *("x", {"w": parameter}, optimiser, lambda s, p: loss(parameter), 3),
            advice="use less",
            state=StateFile(path=tmp_path / "state"),
        )
    assert parameter.item() == 0
    assert not (tmp_path / "state").exists()
