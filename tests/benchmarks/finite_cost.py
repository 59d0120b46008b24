"""What looking for NaN costs: seconds of a run with the look and without it.

    python tests/benchmarks/finite_cost.py [--model mini] [--device cpu] [--dtype float32]

Runs with and without it take turns; the ratio is of the medians.
"""

import argparse
import statistics
import time

import torch

import ine.sampling.loop
from ine.models.loading import load_parts
from ine.runtime import DTYPES
from ine.sampling import SamplerSettings, sample_latents


class Blind:
    """Stands for `Watch` and looks at nothing."""

    def __init__(self, *_args: object) -> None:
        """Begin to look at nothing."""

    def __enter__(self) -> "Blind":
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Look at nothing."""

    def asked(self, *_args: object) -> None:
        """Look at nothing."""

    stepped = asked


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    parts = load_parts(given.model, torch.device(given.device), DTYPES[given.dtype])
    settings = SamplerSettings(steps=given.steps, guidance_scale=5.0, batch=given.batch)
    prompts = ["a dog"] * given.batch
    kinds = {"with": ine.sampling.loop.Watch, "without": Blind}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    # On the CPU the process's own time, so that others on the machine do not count.
    clock = time.process_time if given.device == "cpu" else time.perf_counter
    for _ in range(given.rounds + 1):
        for kind, watch in kinds.items():
            ine.sampling.loop.Watch = watch
            start = clock()
            latents, _, _ = sample_latents(parts, prompts, range(given.batch), None, settings)
            latents.sum().item()
            seconds[kind].append(clock() - start)
    median = {kind: statistics.median(found[1:]) for kind, found in seconds.items()}
    print(  # noqa: T201
        f"with {median['with']:.4f} s, without {median['without']:.4f} s, "
        f"ratio {median['with'] / median['without']:.4f}"
    )


if __name__ == "__main__":
    main()
