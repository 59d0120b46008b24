"""Progress bars on stderr, silent where nobody looks."""

import sys
from contextlib import contextmanager


@contextmanager
def bar(total, label, quiet=False):
    """Yield `update(done, **figures)`; a bar with the time left on a terminal, else nothing."""
    from tqdm import tqdm

    line = tqdm(
        total=total,
        desc=label,
        file=sys.stderr,
        disable=quiet or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )

    def update(done, **figures):
        line.update(done - line.n)
        if figures:
            line.set_postfix(figures, refresh=False)

    try:
        yield update
    finally:
        line.close()
