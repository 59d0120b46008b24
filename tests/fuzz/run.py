"""Read many damaged and hostile files, and write down what no reader should do.

    python tests/fuzz/run.py --files 100000 --report docs/reliability.md
    python tests/fuzz/run.py --first 20000 --files 1000        # another range of the same files
    python tests/fuzz/run.py --replay 4711 --keep /tmp/found   # one file, written down

File N of seed S is always the same. Each is either loaded correctly or refused with an error of
ine; all else is a finding (tests/fuzz/watch.py). Files are read in child processes, so that a
crash or an endless loop ends one file and not the run.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import mutate, readers, samples
from fuzz.watch import watched

SHARES = {
    **{"weights": 18, "embedding": 16, "gate": 7, "folder": 5, "recipe": 5, "pictures": 2.5},
    **{"captions": 1.5, "picture": 7, "layout": 7, "lora": 10, "lora folder": 3, "erased": 6},
    **{"pipeline": 2.5, "model": 2.5, "single": 2, "layer": 1.5, "prompt": 2.5, "prompts": 2},
    **{"state": 2.5},
}
"""Of 100 files, how many are for which reader."""

CHUNK = 2000
PATIENCE = 60
"""Seconds without a further file, after which a child is ended; only C code takes so long."""

GENERATED = re.compile(r"(<!-- fuzz -->\n).*?(<!-- end of fuzz -->)", re.S)


class Files:
    """The numbered files of a seed."""

    def __init__(self, seed):
        self.seed = seed
        self.kinds = samples.samples()
        self.names = list(self.kinds)
        counts = Counter(reader for reader, _ in self.names)
        self.shares = [SHARES[reader] / counts[reader] for reader, _ in self.names]

    def make(self, number):
        """Return (reader, file ending, bytes)."""
        chance = random.Random(f"{self.seed}/{number}")
        reader, ending = chance.choices(self.names, self.shares)[0]
        sample = chance.choice(self.kinds[reader, ending])
        raw = mutate.mutated(chance, sample, ending, reader)
        if reader in ("weights", "embedding") and chance.random() < 0.05:
            ending = chance.choice((".safetensors", ".pt", ".bin"))
        return reader, ending, raw


def read_range(files, first, stop, at, pipe):
    """Read files in this process: `at` holds the number, the pipe gets outcomes and findings."""
    quiet()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        os.chdir(folder)  # a canary is made in the current folder
        for number in range(first, stop):
            at.value = number
            pipe.send((number, *read_one(files, number)))
        os.chdir("/")
    pipe.close()


def quiet():
    """Keep libraries from telling of each file what is wrong with it."""
    from transformers.utils.logging import disable_progress_bar

    logging.disable()
    warnings.simplefilter("ignore")
    disable_progress_bar()


def read_one(files, number):
    """Return (reader, outcome, detail) of one file, read in the current folder."""
    reader, ending, raw = files.make(number)
    path = Path.cwd() / f"file{ending}"
    path.write_bytes(raw)
    found = watched(lambda: readers.read(reader, path), len(raw), Path("canary"))
    path.unlink()
    return reader, *found


def read_all(files, first, stop, note):
    """Return {number: (reader, outcome, detail)} of a range, read in child processes."""
    context = multiprocessing.get_context("fork")
    found = {}
    while first < stop:
        end = min(first + CHUNK, stop)
        at = context.Value("q", first, lock=False)
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=read_range, args=(files, first, end, at, theirs))
        child.start()
        theirs.close()
        number, late = first - 1, False
        try:
            while number < end - 1:
                if not mine.poll(PATIENCE):
                    late = True
                    break
                number, *outcome = mine.recv()
                found[number] = outcome
        except EOFError:
            pass
        if late:
            child.kill()
        child.join()
        if number < end - 1:
            stuck = at.value
            detail = f"no answer for {PATIENCE} s" if late else f"exit code {child.exitcode}"
            reader = files.make(stuck)[0]
            found[stuck] = (reader, "hang" if late else "crash", detail)
            end = stuck + 1
        first = end
        note(first)
    return found


def processor_seconds():
    """Return the processor time that this process and its ended children have taken."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def summary(found, seconds, busy, seed, first):
    """Return the figures of a run as JSON-like data, findings grouped by what they are."""
    table = {}
    for reader, outcome, _ in found.values():
        row = table.setdefault(reader, Counter())
        row["files"] += 1
        row[outcome if outcome in ("loaded", "refused") else "findings"] += 1
    groups = {}
    for number, (reader, outcome, detail) in sorted(found.items()):
        if outcome not in ("loaded", "refused"):
            groups.setdefault((reader, outcome, detail), []).append(number)
    return {
        "seed": seed,
        "first": first,
        "files": len(found),
        "seconds": round(seconds, 1),
        "processor_seconds": round(busy, 1),
        "readers": {name: dict(row) for name, row in sorted(table.items())},
        "findings": [
            {"reader": r, "kind": k, "where": d, "count": len(n), "numbers": n[:5]}
            for (r, k, d), n in sorted(groups.items(), key=lambda item: -len(item[1]))
        ],
    }


def as_markdown(data):
    """Return the generated part of docs/reliability.md."""
    last = data["first"] + data["files"] - 1
    speed = data["files"] / max(data["processor_seconds"], 1e-9)
    lines = [
        f"{data['files']:,} files, numbers {data['first']} to {last} of seed {data['seed']}, in "
        f"{data['processor_seconds']:.0f} s of one core ({speed:.0f} files per second; "
        f"{data['seconds']:.0f} s on the clock).",
        "",
        "| reader | files | loaded | refused | findings |",
        "|---|---|---|---|---|",
    ]
    for name, row in data["readers"].items():
        cells = " | ".join(f"{row.get(k, 0):,}" for k in ("files", "loaded", "refused", "findings"))
        lines.append(f"| {name} | {cells} |")
    lines.append("")
    if not data["findings"]:
        return "\n".join([*lines, "No findings.", ""])
    lines += ["| reader | finding | where | files | numbers |", "|---|---|---|---|---|"]
    for f in data["findings"]:
        numbers = ", ".join(map(str, f["numbers"]))
        lines.append(f"| {f['reader']} | {f['kind']} | {f['where']} | {f['count']} | {numbers} |")
    return "\n".join([*lines, ""])


def replay(files, number, keep):
    """Read one file in this process, write it down, and return what happened."""
    reader, ending, raw = files.make(number)
    keep = Path(keep).resolve()
    keep.mkdir(parents=True, exist_ok=True)
    (keep / f"{files.seed}-{number}{ending}").write_bytes(raw)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        os.chdir(folder)
        found = read_one(files, number)
        os.chdir("/")
    return {"number": number, "reader": reader, "bytes": len(raw), "outcome": found[1:]}


def main():
    """Return the exit code: 1 where there were findings."""
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--files", type=int, default=2000)
    ask.add_argument("--first", type=int, default=0, help="number of the first file")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--report", type=Path, help="Markdown whose generated part is replaced")
    ask.add_argument("--json", type=Path, help="where to write the figures")
    ask.add_argument("--replay", type=int, help="read this one file only")
    ask.add_argument("--keep", type=Path, default=Path("found"), help="folder for --replay")
    args = ask.parse_args()
    files = Files(args.seed)
    if args.replay is not None:
        found = replay(files, args.replay, args.keep)
        sys.stdout.write(json.dumps(found) + "\n")
        return int(found["outcome"][0] not in ("loaded", "refused"))
    stop, started, before = args.first + args.files, time.monotonic(), processor_seconds()

    def note(number):
        speed = (number - args.first) / (time.monotonic() - started)
        sys.stderr.write(f"{number - args.first} of {args.files}, {speed:.0f} per second\n")

    found = read_all(files, args.first, stop, note)
    busy = processor_seconds() - before
    data = summary(found, time.monotonic() - started, busy, args.seed, args.first)
    if args.json:
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    text = as_markdown(data)
    if args.report:
        page = args.report.read_text()
        args.report.write_text(GENERATED.sub(lambda m: m[1] + text + m[2], page))
    sys.stdout.write(text)
    return int(bool(data["findings"]))


if __name__ == "__main__":
    sys.exit(main())
