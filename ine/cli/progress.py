"""Progress bars on stderr, shown only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(total: int, label: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yield `update(done, **figures)`, which moves a bar with the time left."""
    from tqdm import tqdm

    line = tqdm(
        total=total,
        desc=label,
        file=sys.stderr,
        disable=quiet or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )

    def update(done: int, **figures: Any) -> None:
        line.update(done - line.n)
        if figures:
            line.set_postfix(figures, refresh=False)

    try:
        yield update
    finally:
        line.close()
