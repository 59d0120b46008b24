"""Run a grid on a disk that is really full, and in folders that really cannot be written.

    python tests/benchmarks/full_disk.py          # as root on Linux; ten minutes on a busy machine

A grid on `mini` is run once on an ordinary disk. Then its run folder is put on a small tmpfs,
whose size is chosen so that it is full while a certain file is written: facts of a model, a unit,
a reading, results, the report. Each time the run has to end with exit code 9 and one line, leave
no temporary file, and keep what was stored; then the disk is made larger, and the run goes on. In
the end every byte has to be that of the first run. The same with a disk that is mounted read-only,
with a store on it that has all that is needed, and in folders without rights, by a root from whom
the right to pass over them is taken.

Prints one line per moment; the exit code is 1 where something is amiss.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from kill_grid import GRID, say

PAGE = 4096
LARGE = 1 << 26
MOMENTS = (
    ("models/", 0),
    ("grid.json", 0),
    ("units/", 0),
    ("readings/", 0),
    ("readings/", 1),
    ("units/", 5),
    ("readings/", -1),
    ("about.json", 0),
    ("pictures.jsonl", 0),
    ("results.jsonl", 0),
    ("report.html", 0),
)
"""(how the name of a file begins, which of them): what is being written when the disk is full."""

OWN = ("rates.json", "locks")
"""Measured times, and locks: neither is a result."""

problems = []


def check(good, what):
    """Note what is amiss."""
    if not good:
        problems.append(what)
        say(f"  AMISS: {what}")


def evaluate(grid, folder, *options, rights=True):
    """Run; return (exit code, stdout, stderr)."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "ine", "-qq", "evaluate", grid, "--out", folder, *options]
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=None if rights else without_rights,
    )
    return done.returncode, done.stdout, done.stderr


def without_rights():
    """Give up for good what lets root read and write whatever the rights of a file."""
    libc, drop = ctypes.CDLL(None), 24
    for override in (1, 2):
        if libc.prctl(drop, override, 0, 0, 0):
            raise OSError("capabilities cannot be dropped")


def contents(folder):
    """Return {name: bytes} of all that a run leaves but locks and measured times."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    names = {str(p.relative_to(folder)): p for p in files}
    return {n: p.read_bytes() for n, p in names.items() if n.partition("/")[0] not in OWN}


def order_of(folder):
    """Return [(name, pages)] in the order in which they were written."""
    files = sorted(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns
    )
    return [(str(p.relative_to(folder)), -(-p.stat().st_size // PAGE)) for p in files]


def bytes_until(order, start, number):
    """Return (name, size of a disk that is full while it is written); one page is taken already."""
    name = [n for n, _ in order if n.startswith(start)][number]
    at = [n for n, _ in order].index(name)
    before = sum(pages for _, pages in order[:at])
    return name, (1 + before + order[at][1] - 1) * PAGE


def refused(result, words):
    """Check that a run ended with one line of ine's and the exit code of outputs."""
    code, out, printed = result
    check(code == 9, f"exit code {code}: {printed[-400:]}")
    check(out == "", f"it printed results: {out[:200]!r}")
    check(printed.startswith("Error: ") and printed.count("\n") == 1, f"not one line: {printed!r}")
    check(words in printed, f"{words!r} is not in {printed!r}")
    return printed.strip()


def sound(folder, wanted):
    """Check that all in a folder is as it would be in the end, and nothing else is there."""
    found = contents(folder)
    strange = [name for name in found if name not in wanted]
    check(not strange, f"left behind: {strange}")
    check(all(found[n] == wanted[n] for n in found if n in wanted), "what is there is not the same")
    return len(found)


def ended(result, folder, wanted):
    """Check that a run ended well, with the same bytes."""
    code, _, printed = result
    check(code == 0, f"exit code {code}: {printed[-400:]}")
    found = contents(folder)
    other = [n for n in {*found, *wanted} if found.get(n) != wanted.get(n)]
    check(not other, f"other bytes: {other}")
    return "equal" if not other else "DIFFERENT"


def mount(*options):
    """Call mount, or end."""
    if subprocess.run(["mount", *map(str, options)]).returncode:
        raise SystemExit("mounting is not allowed here; run this as root, where mounting works")


@contextmanager
def small_disk(place):
    """Yield the folder of a tmpfs of two pages, one of them taken."""
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={2 * PAGE}", "tmpfs", place)
    try:
        (place / "ballast").write_bytes(b"x")
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def full_disks(grid, disk, order, wanted):
    """Fill the disk at one moment after the other, and go on."""
    folder = disk / "run"
    for start, number in MOMENTS:
        name, size = bytes_until(order, start, number)
        mount("-o", f"remount,size={size}", disk)
        printed = refused(evaluate(grid, folder), "disk is full")
        check(
            Path(name).name in printed, f"expected {name} to be what cannot be written: {printed}"
        )
        there = sound(folder, wanted) if folder.exists() else 0
        free = os.statvfs(disk)
        say(f"full at {size:>7} bytes, {name[:40]}: {there} files there, "
            f"{free.f_bavail * free.f_bsize} bytes free")  # fmt: skip
    mount("-o", f"remount,size={LARGE}", disk)
    say(f"with room again: {ended(evaluate(grid, folder), folder, wanted)}")


def read_only(grid, disk, place, wanted):
    """Mount the disk read-only: run again, look, score from there, go on where something misses."""
    folder = disk / "run"
    results = {n: b for n, b in wanted.items() if "/" not in n and n != "grid.json"}
    mount("-o", "remount,ro", disk)
    say(refused(evaluate(grid, folder), "Read-only"))
    say(refused(evaluate(grid, disk / "new"), "Read-only"))
    check(evaluate(grid, folder, "--dry-run")[0] == 0, "a dry run needs to write nothing")
    sound(folder, wanted)
    done = evaluate(grid, place / "out", "--store", folder)
    check(done[0] == 0, f"from a store that cannot be written: {done[2][-400:]}")
    found = contents(place / "out")
    check(all(found.get(n) == results[n] for n in results), "other results from a read-only store")
    say("results from a read-only store: compared")
    mount("-o", "remount,rw", disk)
    unit = max((folder / "units").rglob("*.zip"))
    unit.unlink()
    mount("-o", "remount,ro", disk)
    say(refused(evaluate(grid, place / "out", "--store", folder), "Read-only"))
    mount("-o", "remount,rw", disk)
    say(f"writable again: {ended(evaluate(grid, folder), folder, wanted)}")


def no_rights(grid, place, wanted):
    """Run in a folder that may be read, in one that may not even be looked into, and beside it."""
    folder = place / "whole"
    unit = max((folder / "units").rglob("*.zip"))
    unit.unlink()
    (place / "new").mkdir()
    folders = [place / "new", folder, *(p for p in folder.rglob("*") if p.is_dir())]
    for mode in (0o555, 0):
        for path in folders:
            path.chmod(mode)
        for name in ("whole", "new", "new/run"):
            say(refused(evaluate(grid, place / name, rights=False), "Permission denied"))
    for path in folders:
        path.chmod(0o755)
    say(f"with rights again: {ended(evaluate(grid, folder, rights=False), folder, wanted)}")


def main():
    """Run, fill, close."""
    if os.getuid():
        raise SystemExit("run this as root: it mounts a small disk")
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        grid = place / "grid.yaml"
        grid.write_text(GRID.replace("COUNT", "3").replace("STEPS", "2"))
        first = evaluate(grid, place / "whole")
        if first[0]:
            raise SystemExit(f"a run on an ordinary disk failed: {first[2]}")
        wanted, order = contents(place / "whole"), order_of(place / "whole")
        say(f"on an ordinary disk: {len(wanted)} files, {sum(n for _, n in order) * PAGE} bytes")
        with small_disk(place / "disk") as disk:
            full_disks(grid, disk, order, wanted)
            read_only(grid, disk, place, wanted)
        no_rights(grid, place, wanted)
    say(f"{len(problems)} problems")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
