"""Programs that start several processes: python -m pytest -m slow -n 0 tests/test_launchers.py."""

import os
import subprocess
import sys

import pytest
from small_grid import contents, small_grid

pytestmark = pytest.mark.slow

GRID = small_grid("""\
prompts:
  - {name: test, source: "mini:fire/implying-test", role: test, expects: harmful, limit: 6}
sampler: {steps: 2, batch: 2, guidance_scale: 5}
""")
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(*words, count=1):
    """Run a module `count` times at once; return what they printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", *map(str, words)]
    processes = [
        subprocess.Popen([w.replace("NUMBER", str(n)) for w in command], env=env, stdout=-1, text=1)
        for n in range(count)
    ]
    printed = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_folder):
    """(a grid, the folder of one process)."""
    place = tmp_path_factory.mktemp("alone")
    grid = place / "grid.yaml"
    grid.write_text(GRID.replace("MODEL", str(tiny_folder)))
    started("ine", "-qq", "evaluate", grid, "--out", place / "run")
    return grid, place / "run"


@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_a_launcher_makes_the_same_bytes(alone, tmp_path, launcher):
    grid, folder = alone
    [printed] = started(*launcher, "-m", "ine", "-qq", "evaluate", grid, "--out", tmp_path / "run")
    assert printed.count("results:") == 1
    assert contents(tmp_path / "run") == contents(folder)


@pytest.mark.parametrize(("launcher", "count"), [(ACCELERATE, 1), (TORCHRUN, 2)])
def test_how_many_a_launcher_starts_without_a_gpu(launcher, count):
    """What docs/evaluate.md says of CPUs: accelerate starts one there, whatever it is asked."""
    [printed] = started(*launcher, "-m", "ine", "--version")
    assert printed.count("version") == count


def test_shards_of_a_shared_folder_make_the_same_bytes(alone, tmp_path):
    grid, folder = alone
    run = ("ine", "-qq", "evaluate", grid, "--out", tmp_path / "run", "--shard", "NUMBER/3")
    printed = started(*run, count=3)
    assert sum("results:" in text for text in printed) >= 1
    assert contents(tmp_path / "run") == contents(folder)
