"""What a folder of pictures costs beside making them: does it grow faster than the folder?

    python tests/benchmarks/gallery_index.py [PICTURES]

`fill_gallery` is run with a maker that returns the same grey pictures at once, so that all the time
is the folder's: PNGs, the index, the sheet. Its cost per picture should not grow with the number
of pictures: the ratio for twice as many is near 1 where rows are added to the index, and up to 2
where it is written whole after every unit. Bytes written to the index are compared with its size
at the end. Times are those of the process (CPU), so that a busy machine does not decide.

Prints the figures; the exit code is 1 where a ratio is above its limit.
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from kill_grid import say

from ine.gallery import fill, index
from ine.gallery.fill import fill_gallery
from ine.gallery.index import INDEX, GalleryPlan
from ine.sampling import PictureRequest, SamplerSettings, Unit

BATCH = 4
GROWTH_LIMIT = 1.4
BYTES_LIMIT = 2.5
SETTINGS = {"model": "mini", "weights": "0" * 64, "negative": "fire-neg", "steps": 20}
WRITERS = ("append_text", "write_text")


def stub_units(parts, requests, guidance, sampler, skip=None):
    """Yield units of grey pictures, as `ine.sampling.generate` does."""
    grey = np.full((BATCH, 64, 64, 3), 128, np.uint8)
    for first in range(0, len(requests), BATCH):
        unit = requests[first : first + BATCH]
        yield Unit(
            first=first,
            requests=unit,
            pictures=grey[: len(unit)],
            unet_calls=[40] * len(unit),
            notes=[{}] * len(unit),
        )


def cost(pictures):
    """Return (CPU seconds, bytes written to the index, its size at the end)."""
    written = []

    def counted(write):
        return lambda path, text: (written.append(len(text.encode())), write(path, text))[1]

    before = {name: getattr(index, name) for name in WRITERS}
    make, fill.generate = fill.generate, stub_units
    for name in WRITERS:
        setattr(index, name, counted(before[name]))
    requests = tuple(PictureRequest(prompt=f"a picture of {i}", seed=i) for i in range(pictures))
    plan = GalleryPlan(requests=requests, settings=SETTINGS)
    sampler = SamplerSettings(steps=20, guidance_scale=5.0, batch=BATCH)
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            fill_gallery(folder, SimpleNamespace(picture_size=64), plan, None, sampler)
            seconds = time.process_time() - start
            return seconds, sum(written), (Path(folder) / INDEX).stat().st_size
    finally:
        fill.generate = make
        for name, value in before.items():
            setattr(index, name, value)


def main():
    """Measure, print, compare."""
    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    each = []
    for count in (pictures // 2, pictures):
        seconds, written, size = cost(count)
        each.append(seconds / count)
        say(
            f"{count} pictures: {seconds:.1f} s, {seconds / count * 1e3:.2f} ms a picture; "
            f"{written / 1e6:.1f} MB written for an index of {size / 1e6:.1f} MB"
        )
    growth = each[1] / each[0]
    say(f"cost per picture where there are twice as many: x{growth:.2f} (1 is right, 2 is not)")
    say(f"bytes written: {written / size:.1f} times the index")
    return growth > GROWTH_LIMIT or written > BYTES_LIMIT * size


if __name__ == "__main__":
    sys.exit(main())
