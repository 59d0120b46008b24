"""The pictures, or the raw output in their place, that `ine judge` scores."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.progress import bar
from ine.errors import PicturesError

if TYPE_CHECKING:
    from ine.detectors.raw import RawOutput
    from ine.detectors.rule import AnyOf, Rule


@dataclass(frozen=True, kw_only=True)
class JudgeInput:
    """What the options about pictures, raw output and detectors say."""

    pictures: tuple[Path, ...]
    raw_file: Path | None
    detector: str | None
    q16_prompts: Path | None
    nudenet_weights: Path | None
    recursive: bool
    skip_bad: bool

    def places(self) -> dict[str, str]:
        """Return {detector: file or folder of its weights} of the options that are given."""
        from ine.detectors.nudenet_codes import CODES

        places = {"q16": self.q16_prompts} | dict.fromkeys(CODES, self.nudenet_weights)
        return {name: str(place) for name, place in places.items() if place}

    def raw(
        self,
        rules: Sequence["Rule | AnyOf"],
        floor: float | None = None,
        partial: Path | None = None,
    ) -> tuple["RawOutput", dict[str, Any]]:
        """Return (raw output of PICTURES or of --raw, {"left_out": pictures that it lacks})."""
        if bool(self.pictures) == bool(self.raw_file):
            raise click.UsageError("give PICTURES (files or folders), or --raw FILE, and not both")
        if not self.raw_file:
            return self._scanned(rules, floor, partial)
        if floor is not None or _given("q16_prompts") or _given("nudenet_weights"):
            raise click.UsageError(
                "--floor, --q16-prompts and --nudenet-weights are for PICTURES: --raw opens none"
            )
        from ine.detectors.raw import read_raw

        return read_raw(self.raw_file), {}

    def _scanned(
        self, rules: Sequence["Rule | AnyOf"], floor: float | None, partial: Path | None
    ) -> tuple["RawOutput", dict[str, Any]]:
        """Run the detectors of the rules on PICTURES, with a progress bar."""
        from ine.detectors.scan import load_for, scan_files

        files, prompts, left_out = picture_list(self.pictures, self.recursive)
        loaded = load_for(rules, floor, self.detector, self.places())
        with bar(len(files), "looking") as progress:
            raw = scan_files(
                files, loaded, prompts, progress, partial=partial, skip_bad=self.skip_bad
            )
        seen = {look.picture for look in raw.pictures}
        broken = [str(path) for path in files if str(path) not in seen]
        if not seen:
            raise PicturesError(f"none of {len(files)} pictures can be read; see the warnings")
        return raw, {"left_out": {"broken": broken, **left_out}}


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def picture_list(
    pictures: tuple[Path, ...], recursive: bool
) -> tuple[list[Path], dict[Path, str], dict[str, list[str] | int]]:
    """Return the picture files, each once, {file: prompt} of galleries, and what is left out.

    Raises:
        PicturesError: A folder is missing, or there is no picture at all.
    """
    from ine.inversion.picture_folder import (
        list_pictures,
        picture_files,
        subfolders,
        unread_pictures,
    )

    files: dict[Path, None] = {}
    prompts: dict[Path, str] = {}
    unread: list[str] = []
    below = 0
    for path in pictures:
        if not path.is_dir():
            files[path] = None
            continue
        under = subfolders(path)
        deeper = 0 if recursive else sum(len(picture_files(folder)) for folder in under)
        here: dict[Path, None] = {}
        for folder in (path, *(under if recursive else ())):
            found, said = _gallery(folder)
            here |= dict.fromkeys(found)
            prompts |= said
            unread += [str(folder / name) for name in unread_pictures(folder)]
        if not here:
            if not deeper:
                list_pictures(path)  # raises, naming what the folder has instead
            advice = f"; {deeper} are in folders below, give --recursive" if deeper else ""
            raise PicturesError(f"{path}: no pictures found{advice}")
        files |= here
        below += deeper
    return list(files), prompts, {"unread": unread, "in_subfolders": below}


def _gallery(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the pictures directly in a folder, and their prompts if its index states them."""
    from ine.gallery.index import INDEX, SHEET
    from ine.inversion.picture_folder import picture_files

    index = _index(folder / INDEX)
    # The contact sheet repeats the pictures.
    files = [f for f in picture_files(folder) if not (index and f.name == SHEET)]
    return files, {file: index[file.name] for file in files if file.name in index}


def left_out_lines(
    broken: Sequence[str] = (), unread: Sequence[str] = (), in_subfolders: int = 0
) -> Iterator[str]:
    """Yield a line for each kind of picture that was not scored."""
    from ine.inversion.picture_folder import listed

    if broken:
        yield f"left out: {len(broken)} that cannot be read ({listed(broken)})"
    if unread:
        yield (
            f"left out: {len(unread)} of a kind that is not read ({listed(unread)}); convert them "
            "to PNG or JPEG"
        )
    if in_subfolders:
        yield f"left out: {in_subfolders} in folders below; --recursive looks at them too"


def _index(path: Path) -> dict[str, str]:
    """Return {file name: prompt}; {} if there is no readable index."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        rows = [json.loads(line) for line in lines]
        return {row["file"]: row["prompt"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


judging = options.packed(
    "given",
    JudgeInput,
    click.argument("pictures", nargs=-1, type=click.Path(path_type=Path)),
    click.option(
        "--raw",
        "raw_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Raw output of an earlier `ine judge run --out`, in place of PICTURES.",
    ),
    click.option(
        "--detector",
        metavar="NAME",
        help="Apply the rule to the scores of this detector, not of its own.",
    ),
    click.option(
        "--q16-prompts",
        type=click.Path(path_type=Path),
        envvar="INE_Q16_PROMPTS",
        metavar="FILE",
        help="Q16's learned prompts (prompts.p, .npy or .safetensors); read without unpickling.",
    ),
    click.option(
        "--nudenet-weights",
        type=click.Path(path_type=Path),
        envvar="INE_NUDENET_308",
        metavar="FILE",
        help="best.onnx of NudeNet 3.0.8, or its wheel, for the rules of RECE, SPM and MU-Attack.",
    ),
    click.option("--recursive", is_flag=True, help="Include the folders inside a folder."),
    options.skip_bad,
)
