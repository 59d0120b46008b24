"""Read and write training sets of refinement.

Two forms. Parquet as ToxiClean-IT is published: the columns `image` (a struct of bytes and path),
`query` and `response`, in one file or in a folder of `train-*.parquet`. A folder with `rows.jsonl`,
one object a line, and the pictures as files. Either may also hold what was seen, `textual` and
`visual`, each a list of rule, score and verdict. Every row is screened, as every prompt file is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ine.errors import PromptError
from ine.files import user_path
from ine.prompts.screening import is_refused
from ine.refining.dataset import RefiningSet, Row, RowData, row_of
from ine.refining.dataset_lines import ROWS, read_lines, write_folder
from ine.refining.dataset_parquet import read_parquet, write_parquet

READERS: dict[str, Callable[[Path], Sequence[RowData]]] = {
    ".parquet": read_parquet,
    ".jsonl": read_lines,
}
"""Extension of a file -> function that reads its rows."""


def read_set(place: str | Path) -> RefiningSet:
    """Return a training set, screened; pictures are read when they are asked for.

    Args:
        place: A `.parquet` file, a `.jsonl` file, or a folder that holds one of them.

    Raises:
        MissingDependency: Parquet is read by pyarrow, which is not installed.
        PromptError: It is missing or cannot be read, lacks a column, or a row is wrong.
    """
    files = set_files(user_path(place))
    data = [(file, one) for file in files for one in READERS[file.suffix](file)]
    rows, refused = [], []
    for number, (file, one) in enumerate(data, 1):
        row = row_of(one, f"{file}: row {number}", file.parent)
        if is_refused(row.query, row.response):
            refused.append(number)
        else:
            rows.append(row)
    if not rows:
        raise PromptError(
            f"{place}: holds no row"
            + (f"; all {len(refused)} were refused by screening" if refused else "")
        )
    return RefiningSet(name=Path(place).name, rows=tuple(rows), refused=tuple(refused))


def set_files(place: Path) -> list[Path]:
    """Return the files of a training set, in order.

    Raises:
        PromptError: No such file is there.
    """
    if place.is_file() and place.suffix in (".parquet", ".jsonl"):
        return [place]
    patterns = (ROWS, "train*.parquet", "data/train*.parquet", "train.jsonl")
    found = next((files for p in patterns if (files := sorted(place.glob(p)))), [])
    if not found:
        raise PromptError(
            f"{place}: is no training set; expected a .parquet or .jsonl file, or a folder with "
            f"{', '.join(patterns)}"
        )
    return found


def write_set(out: Path, rows: Sequence[Row]) -> Path:
    """Write a training set and return its file.

    Args:
        out: A `.parquet` file, or a folder.
        rows: At least one.

    Raises:
        MissingDependency: Parquet is written by pyarrow, which is not installed.
        OutputError: It cannot be written.
        PromptError: A picture cannot be read.
    """
    if out.suffix != ".parquet":
        return write_folder(out, rows)
    write_parquet(out, rows)
    return out
