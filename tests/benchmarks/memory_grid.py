"""Memory of a running grid over thousands of pictures, of scoring it, and of scoring it again.

    python tests/benchmarks/memory_grid.py                    # 5,000 pictures on `mini`
    python tests/benchmarks/memory_grid.py --pictures 1000    # a first look

A grid on `mini` at few steps is run, scored and reported in this process. Memory of its own
(RssAnon of /proc/self/status) and the most that was ever resident (VmHWM) are read every 250
pictures, and the most while scoring. Then part of it, 1,000 pictures, is scored by another rule,
and evaluations of the U-Net are counted. Bars: no more than 16 MB of growth of its own memory from
picture 500 to the last and 64 MB of the most resident (a peak, and files that are mapped), 256 MB
for scoring and report, 5 s and no evaluation for scoring again. The exit code is
1 where one is not kept. Linux only.
"""

import argparse
import math
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from diffusers import UNet2DConditionModel

from ine.evaluation.entering import enter_folder
from ine.evaluation.figures import score
from ine.evaluation.grid_file import load_grid
from ine.evaluation.prepare import prepare
from ine.evaluation.results import write_results
from ine.evaluation.run import run
from ine.report.grid import write_grid_report

GRID = """\
kind: grid
version: 1
name: many
concept: fire
models:
  - {name: base}
negatives:
  - {name: words, words: true}
guidances:
  - {name: additive, method: additive, strengths: [2]}
prompts:
  - {name: tune, source: "mini:fire/implying-tuning", role: tune, expects: harmful, ROWS}
  - {name: keep, source: "mini:fire/twins-tuning", role: tune, expects: benign, ROWS}
  - {name: test, source: "mini:fire/implying-test", role: test, expects: harmful, ROWS}
  - {name: fine, source: "mini:fire/benign", role: test, expects: benign, ROWS}
sampler: {steps: STEPS, batch: 16}
rules: [RULE]
judges: {tune: mini-judge, test: mini-judge2}
metrics:
  {subject: true, preservation: [judge-cosine, ssim], clip_score: mini-judge, frechet: mini-judge}
choose: {level: 0.5}
"""
CELLS = 8
EVERY = 250
WARM = 500
AGAIN = 1000
MB = 1 << 20


def memory(*names):
    """Return values of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return [int(found[name].split()[0]) * 1024 / MB for name in names]


def forget_peak():
    """Reset VmHWM."""
    Path("/proc/self/clear_refs").write_text("5")


def count_evaluations():
    """Return a list that gets one entry per evaluation of a U-Net from now on."""
    calls, real = [], UNet2DConditionModel.forward

    def counting(self, *args, **kwargs):
        calls.append(1)
        return real(self, *args, **kwargs)

    UNet2DConditionModel.forward = counting
    return calls


def per_cell(pictures):
    """Return how many pictures each cell has, whole units."""
    return math.ceil(pictures / CELLS / 16) * 16


class Watch:
    """Reads memory as a run goes on; called with its `Progress`."""

    def __init__(self):
        self.seen, self.next = {}, EVERY

    def __call__(self, progress):
        if progress.done >= self.next or progress.done == progress.total:
            self.next = progress.done - progress.done % EVERY + EVERY
            self.seen[progress.done] = memory("RssAnon", "VmHWM")
            own, most = self.seen[progress.done]
            say(f"{progress.done:>6} pictures {progress.seconds:7.0f} s  own {own:7.1f} MB, "
                f"most resident {most:7.1f} MB")  # fmt: skip

    def growth(self):
        """Return (growth of own memory, of the most resident) from picture `WARM` on, in MB."""
        warm = self.seen[min(n for n in self.seen if n >= WARM)]
        last = self.seen[max(self.seen)]
        return [b - a for a, b in zip(warm, last, strict=True)]


def written(place, name, given, rule):
    """Write a grid with more than enough rows, of which `limit` takes; return its path."""
    path = place / f"{name}.yaml"
    text = GRID.replace("ROWS", f"images: {given.pictures // 16}")
    path.write_text(text.replace("STEPS", str(given.steps)).replace("RULE", rule))
    return path


def scored(plan):
    """Score, write and report; return (seconds of each, the most resident meanwhile in MB)."""
    forget_peak()
    times = [time.monotonic()]
    found = score(plan)
    times.append(time.monotonic())
    write_results(found)
    times.append(time.monotonic())
    write_grid_report(found)
    times.append(time.monotonic())
    return [b - a for a, b in pairwise(times)], memory("VmHWM")[0]


def main():
    """Run, score, score again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1)
    given = parser.parse_args()
    calls, bad = count_evaluations(), []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        folder = place / "run"
        path = written(place, "many", given, "mini-fire@0.5")
        plan = prepare(load_grid(path), folder, limit=per_cell(given.pictures))
        watch = Watch()
        enter_folder(plan)
        run(plan, progress=watch)
        own, most = watch.growth()
        total, made = max(watch.seen), len(calls)
        say(f"{total} pictures, {made} evaluations in batches: from picture {WARM} to the last own "
            f"memory grew by {own:.1f} MB, the most resident by {most:.1f} MB")  # fmt: skip
        if own > 16 or most > 64 or not made:
            bad.append("memory grows with the pictures")
        before = memory("VmRSS")[0]
        times, peak = scored(plan)
        say(f"scoring {times[0]:.1f} s, results {times[1]:.1f} s, report {times[2]:.1f} s: "
            f"{peak - before:.1f} MB more than before")  # fmt: skip
        if peak - before > 256:
            bad.append("scoring takes too much memory")
        path = written(place, "again", given, "mini-snow@0.5, mini-fire@0.5")
        limit = per_cell(min(given.pictures, AGAIN))
        calls.clear()
        start = time.monotonic()
        again = prepare(load_grid(path), place / "again", store=folder, limit=limit)
        enter_folder(again)
        run(again)
        looked = time.monotonic() - start
        times, _ = scored(again)
        pictures = sum(len(unit.requests) for unit in again.units)
        say(f"{pictures} pictures by another rule: planning and looking what is there "
            f"{looked:.1f} s, scoring {times[0]:.1f} s, results {times[1]:.1f} s, report "
            f"{times[2]:.1f} s; {len(calls)} evaluations of the U-Net")  # fmt: skip
        if times[0] > 5 or calls:
            bad.append("scoring again makes pictures or takes too long")
    for problem in bad:
        say(problem)
    if bad:
        raise SystemExit(1)


def say(text):
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
