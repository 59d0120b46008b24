"""Training sets as Parquet, in the columns and with the header of ToxiClean-IT's publication."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ine.errors import MissingDependency, PromptError
from ine.files import is_lfs_pointer, write_bytes
from ine.refining.dataset import COLUMNS, Row, RowData, image_bytes, row_data

MORE = ("textual", "visual")
"""Columns of what was seen, JSON texts; readers of the published columns pass them by."""


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            'Parquet files need the package pyarrow; run: pip install "ine[train]", or save the '
            "set as JSON lines with picture files"
        ) from error
    return pyarrow


def read_parquet(path: Path) -> list[RowData]:
    """Return the rows of a file as plain values.

    Raises:
        MissingDependency: pyarrow is not installed.
        PromptError: It cannot be read, or lacks a column.
    """
    arrow = _pyarrow()
    try:
        with path.open("rb") as file:
            if is_lfs_pointer(file.read(200)):
                raise PromptError(f"{path}: is a git-lfs pointer, not the file; run `git lfs pull`")
        file = arrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if missing := [name for name in COLUMNS if name not in names]:
            raise PromptError(
                f"{path}: has no column {' and no column '.join(missing)}; it has "
                f"{', '.join(names)}, and {', '.join(COLUMNS)} are expected, as ToxiClean-IT has "
                "them"
            )
        wanted = [name for name in (*COLUMNS, *MORE) if name in names]
        batches = file.iter_batches(batch_size=64, columns=wanted)
        return [_plain(one) for batch in batches for one in batch.to_pylist()]
    except (OSError, arrow.ArrowException) as error:
        raise PromptError(f"{path}: cannot be read as Parquet ({error})") from error


def _plain(data: dict[str, Any]) -> RowData:
    """Return a row with its picture's bytes, and with what was seen as lists."""
    image = data["image"]
    found = dict(data, image=image.get("bytes") if isinstance(image, dict) else image)
    for name in MORE:
        if isinstance(found.get(name), str):
            try:
                found[name] = json.loads(found[name])
            except (ValueError, RecursionError):
                found[name] = (found[name],)  # refused with the row's number
    return found


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with their pictures as one file, which `datasets` reads with pictures decoded.

    Raises:
        MissingDependency: pyarrow is not installed.
        OutputError: The file cannot be written.
        PromptError: A picture cannot be read.
    """
    arrow = _pyarrow()
    struct = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    text = arrow.string()
    kinds = {"image": struct, "query": text, "response": text, "textual": text, "visual": text}
    features = {
        name: {"_type": "Image"} if kind is struct else {"dtype": "string", "_type": "Value"}
        for name, kind in kinds.items()
    }
    header = {"huggingface": json.dumps({"info": {"features": features}})}
    data = [row_data(row) for row in rows]
    columns = {
        "image": [{"bytes": image_bytes(row), "path": None} for row in rows],
        **{name: [one[name] for one in data] for name in ("query", "response")},
        **{name: [json.dumps(one[name]) for one in data] for name in MORE},
    }
    schema = arrow.schema(list(kinds.items()), metadata=header)
    buffer = io.BytesIO()
    arrow.parquet.write_table(
        arrow.table(columns, schema=schema), buffer, row_group_size=100, compression="snappy"
    )
    write_bytes(path, buffer.getvalue())
