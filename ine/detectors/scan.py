"""Run detectors over picture files, resumably."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ine.detectors.base import JOIN, detect, from_json, to_json
from ine.detectors.nudenet_codes import Setup, setup_of
from ine.detectors.raw import (
    PictureDetections,
    RawOutput,
    Settings,
    head_row,
    line_of,
    parse_lines,
    parsed,
    read_head,
    write_raw,
)
from ine.detectors.rule import AnyOf, Rule
from ine.detectors.table import Detector, load_detector, with_place
from ine.errors import OutputError, PicturesError
from ine.files import append_text, sha256_of, whole_lines
from ine.pictures import is_blank, read_whole

log = logging.getLogger(__name__)

BATCH = 16
"""Pictures of one size that a detector gets together."""


def detectors_for(rules: Iterable[Rule | AnyOf], floor: float | None = None) -> list[str]:
    """Return the names of the detectors that rules need, each once.

    NudeNet runs once for each code, weights and channel order, with the lowest floor that any of
    the rules has.

    Args:
        rules: The rules.
        floor: NudeNet's floor, if it is to be lower than the rules need.
    """
    names: list[str] = []
    lowest: dict[tuple[str, str, str], tuple[Setup, float]] = {}
    for name in dict.fromkeys(part.detector for rule in rules for part in rule.parts):
        setup = setup_of(name)
        if setup is None:
            names.append(name)
            continue
        floors = [setup.floors.reported] + ([] if floor is None else [floor])
        if setup.network in lowest:
            floors.append(lowest[setup.network][1])
        lowest[setup.network] = (setup, min(floors))
    return names + [setup.named(least) for setup, least in lowest.values()]


def load_for(
    rules: Iterable[Rule | AnyOf],
    floor: float | None = None,
    detector: str | None = None,
    places: Mapping[str, str | Path] | None = None,
) -> dict[str, Detector]:
    """Return {name: detector}, loaded, that rules need.

    Args:
        rules: The rules.
        floor: As `detectors_for`.
        detector: Name of one detector that replaces the rules' own.
        places: {detector name: file or folder of its weights}, such as {"q16": "prompts.p"}.
    """
    names = [detector] if detector else detectors_for(rules, floor)
    names = [single for name in names for single in name.split(JOIN)]
    return {n: load_detector(with_place(n, places)) for n in names}


def scan_files(
    files: Iterable[Path],
    detectors: Mapping[str, Detector],
    prompts: Mapping[Path, str] | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    partial: Path | None = None,
    skip_bad: bool = False,
) -> RawOutput:
    """Return what detectors find in picture files.

    Args:
        files: Paths.
        detectors: {name: detector}, loaded.
        prompts: {path: prompt}, where known.
        progress: Called with the number of pictures that are done.
        partial: File that keeps results as they come. A later call takes them from there, unless
            detectors, their settings or the picture changed.
        skip_bad: Leave out pictures that cannot be read, with a logged warning each.

    Raises:
        OutputError: `partial` has another format, or cannot be written.
        PicturesError: A file is missing or broken.
    """
    settings = {name: getattr(d, "settings", {}) for name, d in detectors.items()}
    before = _resumed(partial, settings) if partial else {}
    if partial:
        write_raw(partial, RawOutput(detectors=settings, pictures=tuple(before.values())))
    done = []
    digests = {path: sha256_of(prompt.encode())[:16] for path, prompt in (prompts or {}).items()}
    for batch in _batches(files, before, skip_bad, progress):
        # A batch is taken from `before` as a whole or not at all: output may depend on the batch.
        new = [one.known for one in batch if one.known]
        if len(new) < len(batch):
            new = list(_detected(batch, detectors))
            if partial:
                append_text(partial, "".join(map(line_of, new)))
        for one, found in zip(batch, new, strict=True):
            done.append(replace(found, prompt=digests.get(one.path, "")))
    return RawOutput(detectors=settings, pictures=tuple(done))


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A picture on its way to the detectors."""

    path: Path
    size: tuple[int, int]
    pixels: np.ndarray | None = None
    """uint8 (H, W, 3); None if an earlier run has its result."""

    known: PictureDetections | None = None
    """The result of an earlier run."""


def _opened(path: Path, before: Mapping[str, PictureDetections]) -> _Opened:
    known = before.get(str(path))
    with suppress(OSError):
        if known and sha256_of(Path(path).read_bytes()) == known.sha256:
            return _Opened(path=path, size=known.size, known=known)
    pixels = read_whole(path)
    return _Opened(path=path, size=(pixels.shape[1], pixels.shape[0]), pixels=pixels)


def _batches(
    files: Iterable[Path],
    before: Mapping[str, PictureDetections],
    skip_bad: bool,
    progress: Callable[[int], None] | None,
) -> Iterator[list[_Opened]]:
    """Yield up to `BATCH` consecutive pictures of one size."""
    batch: list[_Opened] = []
    for number, path in enumerate(files, start=1):
        try:
            one = _opened(path, before)
        except PicturesError as error:
            if not skip_bad:
                advice = "--skip-bad leaves out what cannot be read"
                raise PicturesError(f"{error}; {advice}") from error
            log.warning("skipped %s", error)
            continue
        if batch and (len(batch) == BATCH or batch[0].size != one.size):
            yield batch
            batch = []
        batch.append(one)
        if progress:
            progress(number)
    if batch:
        yield batch


def _detected(
    batch: list[_Opened], detectors: Mapping[str, Detector]
) -> Iterator[PictureDetections]:
    pictures = np.stack([read_whole(o.path) if o.pixels is None else o.pixels for o in batch])
    found = {name: detect(detector, pictures) for name, detector in detectors.items()}
    for number, one in enumerate(batch):
        yield PictureDetections(
            picture=str(one.path),
            sha256=sha256_of(Path(one.path).read_bytes()),
            size=one.size,
            # As a file stores it, so that verdicts now and later agree.
            found={name: from_json(to_json(rows[number])) for name, rows in found.items()},
            blank=bool(is_blank(pictures[number][None])[0]),
        )


def _resumed(path: Path, settings: Mapping[str, Settings]) -> dict[str, PictureDetections]:
    """Return {picture: result} of an interrupted run, nothing if its settings were different.

    Raises:
        OutputError: The file has another format.
    """
    if not os.path.lexists(path):
        return {}
    try:
        lines, _ = whole_lines(path.read_bytes())
        parsed(path, 1, lines[0], read_head)
        if json.loads(lines[0]) != json.loads(json.dumps(head_row(settings))):
            log.info("%s: is of other detectors or settings, so the run starts over", path)
            return {}
        found = parse_lines(path, lines).pictures
    except (OSError, ValueError, PicturesError) as error:
        raise OutputError(
            f"{path}: is not what an interrupted `ine judge run` leaves ({error}); move it away, "
            "or choose another --out"
        ) from error
    if found:
        log.info("%s: has the results of %d pictures already", path, len(found))
    return {one.picture: one for one in found}
