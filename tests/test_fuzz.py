"""Some of the damaged and hostile files of tests/fuzz, and that it would notice bad readers."""

import json
import mmap
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import gadgets, mutate, samples
from fuzz.watch import watched

from ine.errors import CheckpointError

HERE = Path(__file__).parent


def run(*args):
    command = [sys.executable, HERE / "fuzz" / "run.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)


@pytest.mark.parametrize("count", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_changed_files_are_loaded_or_refused(tmp_path, count):
    out = tmp_path / "found.json"
    result = run("--files", count, "--json", out)
    assert out.exists(), result.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["findings"] == []
    assert found["files"] == count
    for reader, row in found["readers"].items():
        assert row["files"] == row.get("loaded", 0) + row.get("refused", 0), reader
    # Where nothing loads, the changes are too coarse to reach the inside of a reader.
    for reader, row in found["readers"].items():
        # These are few, or small and checked in every part.
        if reader not in ("captions", "pictures", "state", "single"):
            # The strict loader of recipes refuses most changes.
            assert row["loaded"] > (0 if reader == "recipe" else count // 400), reader


def test_a_number_is_always_the_same_file():
    """Which is what makes a finding replayable."""
    kinds = samples.samples()
    for (reader, ending), raws in kinds.items():
        for seed in range(5):
            one, two = (
                mutate.mutated(random.Random(seed), raws[0], ending, reader) for _ in range(2)
            )
            assert one == two
    assert samples.samples.__wrapped__() == kinds


# Positive controls: readers that do what none should


def judged(action, tmp_path, monkeypatch, size=1000):
    monkeypatch.chdir(tmp_path)
    return watched(action, size, Path(gadgets.CANARY))[0]


def reserve():
    return torch.empty(2**38, dtype=torch.uint8)


def disguised():
    try:
        reserve()
    except RuntimeError as error:
        raise CheckpointError("x: is a damaged file") from error


def use():
    # Under the limit of what may be reserved in one piece, as many small ones; and mapped, since
    # a process that has run other tests may have as much freed memory at hand.
    kept = [mmap.mmap(-1, 2**20) for _ in range(400)]
    for piece in kept:
        piece.write(bytes(2**20))


def hang():
    end = time.process_time() + 20
    while time.process_time() < end:
        try:
            sum(range(10_000))
        except Exception:
            continue


def refuse():
    raise CheckpointError("x: is refused")


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        (lambda: 1 / 0, "exception"),
        (reserve, "memory"),
        (disguised, "memory"),
        (use, "memory"),
        (lambda: Path(gadgets.CANARY).touch(), "ran"),
        (lambda: None, "loaded"),
        (refuse, "refused"),
    ],
)
def test_what_a_reader_must_not_do_is_noticed(action, outcome, tmp_path, monkeypatch):
    assert judged(action, tmp_path, monkeypatch) == outcome


def test_a_reader_that_does_not_end_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz.watch.SECONDS", 0.2)
    assert judged(hang, tmp_path, monkeypatch) == "hang"


def test_what_was_loaded_is_compared_with_the_file(tmp_path, monkeypatch):
    """A reader that gives other numbers than the file holds is found."""
    from fuzz import readers

    path = tmp_path / "x.safetensors"
    path.write_bytes(samples.samples()["embedding", ".safetensors"][0])
    real = readers.read_embedding

    def wrong(path):
        found = real(path)
        found.vectors[0][0, 0] += 1
        return found

    assert judged(lambda: readers.check_embedding(path), tmp_path, monkeypatch) == "loaded"
    monkeypatch.setattr(readers, "read_embedding", wrong)
    assert judged(lambda: readers.check_embedding(path), tmp_path, monkeypatch) == "wrong"


def test_what_is_applied_is_compared_with_a_loras_halves(tmp_path, monkeypatch):
    from fuzz import readers

    from ine.weights.lowrank import LowRank

    path = tmp_path / "x.safetensors"
    path.write_bytes(samples.samples()["lora", ".safetensors"][0])
    assert judged(lambda: readers.check_lora(path), tmp_path, monkeypatch) == "loaded"
    real = LowRank.difference
    with monkeypatch.context() as patched:
        patched.setattr(LowRank, "difference", lambda self, shape=None: 2 * real(self, shape))
        assert judged(lambda: readers.check_lora(path), tmp_path, monkeypatch) == "wrong"


def test_weights_of_prompts_are_looked_at(tmp_path, monkeypatch):
    from fuzz import readers

    from ine.text import syntax

    path = tmp_path / "x.txt"
    path.write_bytes(b"(" * 10_000 + b"a")
    assert judged(lambda: readers.check_prompt(path), tmp_path, monkeypatch) == "loaded"
    monkeypatch.setattr(syntax, "MOST_WEIGHT", float("inf"))
    monkeypatch.setattr(syntax, "MOST_PRODUCT", float("inf"))
    assert judged(lambda: readers.check_prompt(path), tmp_path, monkeypatch) == "wrong"


def test_a_base_model_is_used_and_not_only_loaded(tmp_path, monkeypatch):
    """Which is how a context that is longer than the text encoder's would be seen."""
    from fuzz import readers, tiny

    folder = tiny.model_folder()
    path = tmp_path / "x"
    path.write_text(json.dumps({"model_index.json": (folder / "model_index.json").read_text()}))
    assert judged(lambda: readers.check_model(path), tmp_path, monkeypatch) == "loaded"
    from ine.models import tokenizers

    monkeypatch.setattr(tokenizers, "_context", lambda stated, room: 100)
    assert judged(lambda: readers.check_model(path), tmp_path, monkeypatch) != "loaded"
