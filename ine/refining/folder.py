"""The folder of a refinement: the index, the last pictures in the order of the prompts, all rounds.

index.jsonl       a line per prompt: its rounds, how it ended, its last prompt and picture
final/            the last pictures
rounds/N/         the pictures of round N
refine.json       what was run
units/            the rounds as they were made, see `ine.store.pictures`
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ine.display import blur
from ine.errors import OutputError
from ine.files import write_json, write_text
from ine.gallery.index import file_name
from ine.pictures import write_png
from ine.refining.rounds import Batch, Chain, Round
from ine.refining.run import Refined, read_batch
from ine.store.pictures import Store

log = logging.getLogger("ine")

INDEX, FINAL, ROUNDS, ABOUT = "index.jsonl", "final", "rounds", "refine.json"

OnUnusable = Literal["withhold", "last"]
"""What stands in `final/` where an answer was unusable: the picture as a coarse mosaic, since
nobody said that it is safe; or the last picture as it is."""

Row = dict[str, Any]


def enter(folder: Path, about: Mapping[str, Any], force: bool) -> None:
    """Write what is run into its folder.

    Args:
        folder: The folder.
        about: All that decides what it holds, as plain values.
        force: Replace what other settings left; their rounds stay in the store.

    Raises:
        OutputError: The folder is of other settings, or holds other files under these names.
    """
    path = folder / ABOUT
    try:
        there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: is not a file of ine; choose another --out") from error
    strange = [
        name for name in (INDEX, FINAL, ROUNDS) if there is None and (folder / name).exists()
    ]
    wanted = json.loads(json.dumps(about))
    if there is not None and there != wanted:
        names = sorted(k for k in {*there, *wanted} if there.get(k) != wanted.get(k))
        strange = [f"a refinement with other {', '.join(names)}"]
    if strange and not force:
        raise OutputError(
            f"{folder}: holds {', '.join(strange)}; choose another --out, or give --force to "
            "replace them"
        )
    for name in strange and (INDEX, FINAL, ROUNDS):
        _remove(folder / name)
    write_json(path, about)


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be replaced ({error.strerror}); choose another --out"
        ) from error


def write_folder(
    folder: Path,
    store: Store,
    batches: Sequence[Refined],
    ids: Sequence[str],
    on_unusable: OnUnusable = "withhold",
) -> list[Row]:
    """Write the pictures and the index; return the index rows.

    Args:
        folder: Where.
        store: Holds the rounds.
        batches: All batches, in the order of the prompts.
        ids: What names each prompt, in order.
        on_unusable: What stands in `final/` where an answer was unusable.

    Raises:
        OutputError: A file cannot be written.
    """
    rows: list[Row] = []
    for refined in batches:
        rounds = [read_batch(store, key, refined.requests) for key in refined.keys]
        for place in range(len(refined.requests)):
            number = len(rows)
            shown = dict(_pictures(rounds, place))
            rows.append(_write(folder, number, ids[number], rounds[-1], place, shown, on_unusable))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text(folder / INDEX, "".join(f"{line}\n" for line in lines))
    return rows


def _pictures(rounds: Sequence[Batch], place: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, picture) of the rounds of a prompt that have a picture of their own."""
    last = len(rounds[-1].chains[place].rounds)
    for number, batch in enumerate(rounds[:last]):
        yield number, batch.pictures[place]


def _write(
    folder: Path,
    number: int,
    name: str,
    ended: Batch,
    place: int,
    shown: Mapping[int, np.ndarray],
    on_unusable: OnUnusable,
) -> Row:
    """Write the pictures of a prompt; return its index row."""
    chain = ended.chains[place]
    first, last = chain.rounds[0], chain.last
    file = file_name(number, first.seed)
    for n, picture in shown.items():
        write_png(folder / ROUNDS / str(n) / file, picture, _texts(chain.rounds[n]))
    withheld = chain.status == "unusable answer" and on_unusable == "withhold"
    final = ended.pictures[place]
    write_png(folder / FINAL / file, blur(final) if withheld else final, _texts(last))
    return {
        "id": name,
        "prompt": first.prompt,
        "seed": first.seed,
        "status": chain.status,
        "withheld": withheld,
        "final_prompt": last.prompt,
        "final_picture": f"{FINAL}/{file}",
        "unet_calls": ended.calls[place],
        "looks": looks_of(chain),
        "rounds": [_round(n, one, file) for n, one in enumerate(chain.rounds)],
    }


def looks_of(chain: Chain) -> int:
    """Return how often a picture of a chain was looked at."""
    return sum(one.verdict is not None for one in chain.rounds)


def _round(number: int, one: Round, file: str) -> Row:
    verdict = one.verdict
    return {
        "round": number,
        "prompt": one.prompt,
        "seed": one.seed,
        "picture": f"{ROUNDS}/{number}/{file}",
        "verdict": verdict and verdict.kind,
        "answer": verdict and verdict.raw,
        "why": verdict and verdict.why,
    }


def _texts(one: Round) -> dict[str, str]:
    """Return the texts inside a PNG."""
    about = {"prompt": one.prompt, "seed": one.seed}
    return {"ine": json.dumps(about, sort_keys=True, ensure_ascii=False)}


def counts_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how prompts ended, how keep was said, and what it cost, as plain values."""
    rounds = [one for row in rows for one in row["rounds"]]
    keeps = [one for one in rounds if one["verdict"] == "keep"]
    faults = [one["why"] for one in rounds if one["why"]]
    return {
        "prompts": len(rows),
        "kept": sum(row["status"] == "kept" for row in rows),
        "kept_unchanged": sum(row["status"] == "kept" and len(row["rounds"]) == 1 for row in rows),
        "repeated": sum(row["status"] == "repeated" for row in rows),
        "not_looked_at": sum(row["status"] == "not looked at" for row in rows),
        "unusable": {why: faults.count(why) for why in dict.fromkeys(faults)},
        "withheld": sum(row["withheld"] for row in rows),
        "keep_not_bare": sum(one["answer"].strip().lower() != "keep" for one in keeps),
        "pictures": len(rounds),
        "looks": sum(row["looks"] for row in rows),
        "unet_calls": sum(row["unet_calls"] for row in rows),
    }
