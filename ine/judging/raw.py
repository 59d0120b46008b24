"""Raw detector output in a file: pictures are looked at once, and any rule scores them later.

JSON lines. The first says which detectors looked and how they were set; every other one is a
picture: its name, digest and size, a short digest of its prompt where that is known, and what
each detector found (`ine.judging.detection.to_json`; scores rounded to 6 decimals).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine import __version__
from ine.errors import PicturesError, RecipeError
from ine.files import sha256_of, write_text
from ine.judging.detection import DIGITS, JOIN, detect, from_json, scores_of, to_json
from ine.judging.nudenet import PUBLISHED, nudenet_settings
from ine.pictures import read_whole

FORMAT = "ine-raw-1"
BATCH = 16
"""Pictures of one size that a detector is shown together."""

FILE_LIMIT = 2_000_000_000
"""Bytes; a picture has some hundred."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found in one picture."""

    picture: str
    """Its path as it was given."""

    sha256: str
    """Of the file."""

    size: tuple[int, int]
    """Width and height in pixels."""

    found: dict
    """{detector name: tuple of `Detection`}."""

    prompt: str = ""
    """A digest of the prompt that it was made from, by which intervals group; "" if unknown."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What detectors found in many pictures."""

    detectors: dict
    """{name: settings}, plain values."""

    looks: tuple[Look, ...]


def detectors_for(rules, floor=None):
    """Return the names of the detectors that rules need, each once.

    NudeNet looks once for each channel order, with the lowest floor that any of the rules has.

    Args:
        rules: `Rule` or `AnyOf`.
        floor: NudeNet's floor, if it is to be lower than the rules need.
    """
    names, floors = [], {}
    for name in dict.fromkeys(part.detector for rule in rules for part in rule.parts):
        settings = _nudenet(name)
        if settings is None:
            names.append(name)
        else:
            channels, lowest = settings[0], settings[1].reported
            given = [floors.get(channels, lowest), lowest] + ([] if floor is None else [floor])
            floors[channels] = min(given)
    for channels, lowest in floors.items():
        words = [channels] if channels != "bgr" else []
        words += [f"floor={lowest:g}"] if lowest < PUBLISHED.reported else []
        names.append(f"nudenet:{','.join(words)}" if words else "nudenet")
    return names


def _nudenet(name):
    """Return (channels, `Floors`) of a detector name, or None where it is another detector."""
    family, _, words = name.partition(":")
    return nudenet_settings(words) if family == "nudenet" else None


def look_at(files, detectors, prompts=None, progress=None):
    """Return the `Raw` of picture files.

    Args:
        files: Paths.
        detectors: {name: detector}, loaded.
        prompts: {path: prompt}, where known.
        progress: Called with the number of pictures that were looked at.

    Raises:
        PicturesError: A file is missing or broken.
    """
    looks, batch = [], []
    for number, path in enumerate(files, start=1):
        picture = read_whole(path)
        if batch and (len(batch) == BATCH or batch[0][1].shape != picture.shape):
            looks += _looks(batch, detectors, prompts or {})
            batch = []
        batch.append((path, picture))
        if progress:
            progress(number)
    looks += _looks(batch, detectors, prompts or {}) if batch else []
    settings = {name: getattr(d, "settings", {}) for name, d in detectors.items()}
    return Raw(detectors=settings, looks=tuple(looks))


def _looks(batch, detectors, prompts):
    pictures = np.stack([picture for _, picture in batch])
    found = {name: detect(detector, pictures) for name, detector in detectors.items()}
    for number, (path, picture) in enumerate(batch):
        yield Look(
            picture=str(path),
            sha256=sha256_of(Path(path).read_bytes()),
            size=(picture.shape[1], picture.shape[0]),
            # As it will be read back, so that now and later agree.
            found={name: from_json(to_json(rows[number])) for name, rows in found.items()},
            prompt=sha256_of(prompts[path].encode())[:16] if path in prompts else "",
        )


def verdicts(raw, rule, detector=None):
    """Return whether a rule flags each picture, a list of bool.

    Args:
        raw: A `Raw`.
        rule: `Rule` or `AnyOf`.
        detector: Name of the stored detector whose scores are taken instead of the rule's own.

    Raises:
        RecipeError: No detector looked whose output this rule can be applied to.
    """
    sources = [(part, detector or source_for(raw, part)) for part in rule.parts]
    if detector and detector not in raw.detectors:
        raise RecipeError(f"detector {detector!r} did not look; {_who(raw)}")
    return [
        any(part.fires(scores_of(look.found[source])) for part, source in sources)
        for look in raw.looks
    ]


def source_for(raw, part):
    """Return the name of the stored detector that a single rule can be applied to.

    NudeNet with low floors serves rules for higher ones, if the channel order is the same.

    Raises:
        RecipeError: There is none.
    """
    wanted = _nudenet(part.detector)
    for name, settings in raw.detectors.items():
        if name == part.detector:
            return name
        if wanted and name.partition(":")[0] == "nudenet" and _serves(settings, *wanted):
            return name
    raise RecipeError(
        f"rule {part.name!r} needs detector {part.detector!r}; {_who(raw)}; look at the pictures "
        "again with this rule"
    )


def _serves(settings, channels, floors):
    return (
        settings.get("channels") == channels
        and settings.get("overlap") == floors.overlap
        and settings.get("considered", 1) <= floors.considered
        and settings.get("reported", 1) <= floors.reported
    )


def _who(raw):
    return f"those that looked: {', '.join(raw.detectors) or 'none'}"


def write_raw(path, raw):
    """Write a `Raw`, atomically."""
    head = {"format": FORMAT, "ine": __version__, "digits": DIGITS, "detectors": raw.detectors}
    lines = [head]
    for look in raw.looks:
        lines.append(
            {
                "picture": look.picture,
                "sha256": look.sha256,
                "size": list(look.size),
                **({"prompt": look.prompt} if look.prompt else {}),
                "found": {name: to_json(rows) for name, rows in look.found.items()},
            }
        )
    # No spaces: there may be many thousand lines.
    texts = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines]
    write_text(path, "\n".join(texts) + "\n")


def read_raw(path):
    """Return the `Raw` of a file; no picture is opened.

    Raises:
        PicturesError: It is missing, or is not such a file; the line is named.
    """
    path = Path(path)
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise PicturesError(f"{path}: is larger than any such file; was it made by ine?")
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise PicturesError(f"{path}: cannot be read ({reason})") from error
    head = _parsed(path, 1, lines[0], _head)
    rows = enumerate(lines[1:], start=2)
    names = set(head)
    looks = [_parsed(path, n, line, lambda row: _look(row, names)) for n, line in rows]
    return Raw(detectors=head, looks=tuple(looks))


def _parsed(path, number, line, read):
    try:
        return read(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PicturesError(
            f"{path}, line {number}: is not raw detector output as `ine judge run --out` writes it "
            f"({error})"
        ) from error


def _head(row):
    if row.get("format") != FORMAT or not isinstance(row.get("detectors"), dict):
        raise ValueError(f"expected a first line with format {FORMAT!r}")
    return row["detectors"]


def _look(row, names):
    if set(row["found"]) != names:
        raise ValueError(f"looked at by {sorted(row['found'])}, the file says {sorted(names)}")
    width, height = row["size"]
    texts = (row["picture"], row["sha256"], row.get("prompt", ""))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("picture, sha256 and prompt are texts")
    return Look(
        picture=texts[0],
        sha256=texts[1],
        size=(int(width), int(height)),
        found={name: from_json(rows) for name, rows in row["found"].items()},
        prompt=texts[2],
    )


def load_for(rules, floor=None, detector=None, places=None):
    """Return {name: detector} that look at pictures for rules, loaded.

    Args:
        rules: `Rule` or `AnyOf`.
        floor: As `detectors_for`.
        detector: Name of one detector that looks instead of the rules' own.
        places: {detector name: file or folder of its weights}, such as {"q16": "prompts.p"}.
    """
    from ine.judging.detectors import load_detector

    names = [detector] if detector else detectors_for(rules, floor)
    names = [single for name in names for single in name.split(JOIN)]
    places = places or {}
    return {n: load_detector(f"{n}[{places[n]}]" if places.get(n) else n) for n in names}
