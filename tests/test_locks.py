"""One writer at a time: a second run is refused, a killed one blocks nobody."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest

from ine import locks
from ine.cli import cli
from ine.cli.param_types import OutPath
from ine.errors import OutputError
from ine.evaluation.entering import enter_folder
from ine.files import shipped
from ine.locks import LOCK, one_of_many, sole_writer
from ine.pictures import write_png

HOLD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from ine.locks import sole_writer
with sole_writer(Path(sys.argv[1]), "ine generate", folder=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder "out"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_learns_who_writes_and_a_killed_one_blocks_nobody(holder, tmp_path):
    folder = tmp_path / "out"
    message = (
        rf"out: another `ine generate` \(process {holder.pid}, started \d{{4}}-\d\d-\d\d [\d:+]+\) "
        r"is writing it; wait until that has ended, or choose another --out"
    )
    with pytest.raises(OutputError, match=message), sole_writer(folder, "x", folder=True):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert sorted(p.name for p in folder.iterdir()) == [LOCK, LOCK + ".json"]
    with sole_writer(folder, "ine demo", folder=True):
        about = json.loads((folder / (LOCK + ".json")).read_text())
        assert (about["process"], about["command"]) == (os.getpid(), "ine demo")
    assert not list(folder.iterdir())  # which was there before


def test_of_a_holder_that_has_not_said_its_name_it_is_said_too(tmp_path):
    for text in (None, "", "[]", "{"):
        with sole_writer(tmp_path, "x", folder=True):
            about = tmp_path / (LOCK + ".json")
            about.unlink() if text is None else about.write_text(text)
            with pytest.raises(OutputError, match="another process is writing it"):
                sole_writer(tmp_path, "y", folder=True).__enter__()
            about.write_text('{"command": "z", "process": 3, "started": "now", "host": "there"}')
            with pytest.raises(OutputError, match=r"`z` \(process 3 on there, started now\)"):
                sole_writer(tmp_path, "y", folder=True).__enter__()


def test_only_what_was_made_and_is_empty_is_removed(tmp_path):
    with sole_writer(tmp_path / "a" / "b", "x", folder=True):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with suppress(KeyError), sole_writer(tmp_path / "a" / "b.json", "x", folder=False):
        (tmp_path / "a" / "b.json").write_text("{}")
        raise KeyError
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    # Files of one folder are held each by itself.
    with (
        sole_writer(tmp_path / "a" / "b.json", "x", folder=False),
        sole_writer(tmp_path / "a" / "c.json", "x", folder=False),
        pytest.raises(OutputError, match=r"b\.json: another `x`"),
    ):
        sole_writer(tmp_path / "a" / "b.json", "x", folder=False).__enter__()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is not a folder"):
        sole_writer(tmp_path / "file", "x", folder=True).__enter__()
    with pytest.raises(OutputError, match="x: cannot be written"):
        sole_writer(tmp_path / "file" / "x", "x", folder=False).__enter__()
    with pytest.raises(OutputError, match="out: cannot be written"):
        sole_writer(Path("/proc/out"), "x", folder=True).__enter__()


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, error):
    """As NFS and some FUSE mounts answer; filelock raises either."""

    def acquire(*args, **kwargs):
        raise error

    monkeypatch.setattr(locks.FileLock, "acquire", acquire)
    with pytest.raises(OutputError, match=r"cannot be locked \((No locks|flock).*choose an --out"):
        sole_writer(tmp_path / "out", "x", folder=True).__enter__()


def test_a_lock_that_a_kill_would_leave_is_not_taken(tmp_path, monkeypatch):
    """What newer versions of filelock take where there are no others."""
    monkeypatch.setattr(locks, "FileLock", locks.SoftFileLock)
    with pytest.raises(OutputError, match="cannot be locked"):
        sole_writer(tmp_path, "x", folder=True).__enter__()
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- commands


def commands_with(option, group=cli, path=()):
    """Yield ("judge", "run"), its option: of all commands that have an option of this name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_with(option, command, (*path, name))
        for param in command.params:
            if option in param.opts:
                yield (*path, name), param


WITH_OUT = dict(commands_with("--out"))


def test_positive_control_commands_are_found():
    assert {("generate",), ("invert",), ("judge", "run"), ("unet", "export")} <= set(WITH_OUT)


@pytest.mark.parametrize("command", WITH_OUT, ids=" ".join)
def test_an_empty_out_is_no_place(run_ine, command):
    """`--out "$DIR"` with nothing in it would write into the current folder."""
    assert isinstance(WITH_OUT[command].type, OutPath)
    for given in ("", " "):
        done = run_ine(*command, "--out", given)
        assert done.exit_code == 2
        assert "'--out': it is empty" in done.stderr


FIRE = min(shipped("embeddings").rglob("fire-neg.safetensors"))
REWRITTEN = ("--teacher", "teacher:fire")
FOLDERS = {
    ("generate",): ("--prompt", "a dog"),
    ("demo",): (),
    ("compare",): ("--concept", "fire"),
    ("attack",): ("--concept", "fire"),
    ("audit",): ("--concept", "fire"),
    ("judge", "check"): ("p", "--rule", "mini-fire@0.5"),
    ("posi", "base"): ("mini",),
    ("refine", "run"): ("--prompts", "mini:fire/explicit", "--observer", "teacher:fire"),
    ("refine", "dataset", "build"): (*REWRITTEN, "--prompts", "mini:fire/explicit"),
    ("refine", "dataset", "show"): ("p",),
}
FILES = {
    ("invert",): ("--concept", "fire"),
    ("defend",): ("--concept", "fire"),
    ("unlearn",): ("--concept", "fire"),
    ("calibrate",): (FIRE,),
    ("unet", "export"): ("there.safetensors", "--model", "mini"),
    ("judge", "run"): ("p", "--rule", "mini-fire@0.5"),
    ("posi", "pairs"): (*REWRITTEN, "--toxic", "mini:fire/explicit"),
}
SHARED = {("evaluate",)}
"""Several processes may work on one grid."""

AT_ONCE = {("embedding", "convert"), ("embedding", "card"), ("posi", "rewrite")}
"""Write at their end what is whole at once."""

TRAININGS = {("posi", "train"), ("refine", "train")}
"""Lock their folder once their model is loaded, whose weights are a part of what they make."""


def test_every_command_that_writes_is_held_or_has_a_reason():
    assert set(WITH_OUT) == {*FOLDERS, *FILES} | SHARED | AT_ONCE | TRAININGS


@pytest.mark.parametrize("command", [*FOLDERS, *FILES], ids=" ".join)
def test_a_command_does_not_write_what_another_writes(run_ine, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "p" / "a.png", np.zeros((8, 8, 3), np.uint8))
    folder = command in FOLDERS
    out = tmp_path / ("out" if folder else "out.safetensors")
    given = (*command, *(FOLDERS | FILES)[command], "--out", out)
    with ExitStack() as stack:
        stack.enter_context(sole_writer(out, "ine other", folder=folder))
        before = sorted(tmp_path.rglob("*"))
        done = run_ine(*given)
        assert done.exit_code == OutputError.exit_code, done.output
        assert re.search(rf"`ine other` \(process {os.getpid()}, ", done.stderr)
        assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------- folders that are shared


SHARE = HOLD.replace('"ine generate", folder=True', '"a1"').replace("sole_writer", "one_of_many")


def test_processes_that_share_a_folder_know_who_does_other_work_there(tmp_path):
    with one_of_many(tmp_path, "a1") as others:
        assert others == ()
    for work in ("a1", "b2"):  # left by a kill
        (tmp_path / "locks" / f"run-{work}-{socket.gethostname()}-1.lock").touch()
    command = [sys.executable, "-c", SHARE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with one_of_many(tmp_path, "a1") as others:
            assert others == ()
        with one_of_many(tmp_path, "b2") as others:
            [one] = others
            assert re.fullmatch(rf"process {process.pid}, started \d{{4}}-\d\d-\d\d [\d:+]+", one)
        process.kill()
    with one_of_many(tmp_path, "b2") as others:
        assert others == ()


@pytest.mark.parametrize("others", [(), ("process 7, started now",)])
def test_a_grid_is_not_taken_from_who_works_on_it(tmp_path, others):
    def plan(name):
        file = SimpleNamespace(grid=SimpleNamespace(name=name), text=name, work="w", digest=name)
        return SimpleNamespace(folder=tmp_path, store=SimpleNamespace(folder=tmp_path), file=file)

    enter_folder(plan("a"))
    enter_folder(plan("a"), True, others)  # the same grid is shared
    if not others:
        enter_folder(plan("b"), True, others)
        return
    with pytest.raises(OutputError, match=r"another is run there \(process 7, started now\)"):
        enter_folder(plan("b"), True, others)
    assert json.loads((tmp_path / "grid.json").read_text())["grid"] == "a"
