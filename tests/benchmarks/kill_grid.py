"""Kill a small grid at random moments and compare what comes out in the end, byte by byte.

    python tests/benchmarks/kill_grid.py --kills 100

A grid on `mini` is run once without a break. Then, in a fresh folder, it is started and killed
(SIGKILL) at a random moment, again and again until it ends by itself; and so on with fresh folders
until it was killed as often as was asked for. Every folder has to equal the first one. At last one
process and two are timed, with one thread each.

Prints one line per folder and a summary; the exit code is 1 where a byte differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = """\
kind: grid
version: 1
name: killed
concept: fire
models:
  - {name: base}
negatives:
  - {name: words, words: true}
guidances:
  - {name: cfg}
  - {name: additive, method: additive, strengths: [1, 3]}
prompts:
  - {name: tune, source: "mini:fire/implying-tuning", role: tune, expects: harmful, limit: COUNT}
  - {name: keep, source: "mini:fire/twins-tuning", role: tune, expects: benign, limit: COUNT}
  - {name: test, source: "mini:fire/implying-test", role: test, expects: harmful, limit: COUNT}
sampler: {steps: STEPS, batch: 4}
judges: {tune: mini-judge, test: mini-judge2}
metrics: {subject: true, preservation: [judge-cosine, ssim]}
choose: {level: 0.5}
"""
RESULTS = ("results.jsonl", "results.csv", "chosen.json", "pictures.jsonl", "about.json")


def contents(folder):
    """Return {name: bytes} of all that a run leaves but locks and measured times."""
    files = [folder / name for name in RESULTS]
    for kind in ("units", "readings"):
        files += [p for p in (folder / kind).rglob("*") if p.is_file() and p.suffix != ".part"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def start(grid, folder):
    """Start a run in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "ine", "-qq", "evaluate", str(grid), "--out", str(folder)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True)


def seconds_of(grid, folder, processes=1):
    """Run to the end; return the seconds."""
    began = time.monotonic()
    if any(process.wait() for process in [start(grid, folder) for _ in range(processes)]):
        raise SystemExit("a run without a kill failed")
    return time.monotonic() - began


def killed_until_done(grid, folder, rng, longest, most):
    """Return how often a run was killed before it ended by itself; after `most` it is let be."""
    for kills in range(most):
        process = start(grid, folder)
        try:
            process.wait(timeout=rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            continue
        if process.returncode:
            raise SystemExit(f"{folder}: a run that was resumed failed")
        return kills
    seconds_of(grid, folder)
    return most


def main():
    """Kill, compare, time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--count", type=int, default=12, help="pictures per cell")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--per-folder", type=int, default=10, help="most kills of one folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        grid = place / "grid.yaml"
        text = GRID.replace("COUNT", str(given.count)).replace("STEPS", str(given.steps))
        grid.write_text(text)
        longest = seconds_of(grid, place / "whole")
        wanted = contents(place / "whole")
        say(f"without a break: {longest:.1f} s, {len(wanted)} files")
        kills = folders = same = 0
        while kills < given.kills:
            folder = place / f"killed-{folders}"
            most = min(given.per_folder, given.kills - kills)
            found = killed_until_done(grid, folder, rng, longest, most)
            equal = contents(folder) == wanted
            kills, folders, same = kills + found, folders + 1, same + equal
            say(f"folder {folders}: killed {found} times, {'equal' if equal else 'DIFFERENT'}")
        say(f"{kills} kills in {folders} folders; {same} of {folders} folders byte-equal")
        two = seconds_of(grid, place / "two", processes=2)
        equal = contents(place / "two") == wanted
        alone = seconds_of(grid, place / "alone")
        again = seconds_of(grid, place / "alone")
        say(
            f"one process {alone:.1f} s, two {two:.1f} s, of which starting, loading and scoring "
            f"{again:.1f} s: work {(alone - again) / max(two - again, 1e-9):.2f}x as fast, "
            f"whole {alone / two:.2f}x; {'equal' if equal else 'DIFFERENT'}"
        )
    if same < folders or not equal:
        raise SystemExit(1)


def say(text):
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
