"""A command that turns a prompt file into a folder of pictures, as a generator."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.errors import IneError, PicturesError
from ine.pictures import read_whole
from ine.refining.rounds import Made
from ine.sampling import PictureRequest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN = 300
"""Characters of what a failed command said."""


@dataclass(frozen=True, kw_only=True)
class CommandGenerator:
    """Runs a command once per batch; no shell is involved.

    The command has `{prompts}`, a JSON-lines file with `prompt` and `seed` per line, or `{text}`, a
    text file with one prompt per line, and `{out}`, an empty folder. The pictures that it leaves
    there, sorted by name, are those of the prompts, in order.
    """

    command: str
    batch: int = 16
    timeout: float | None = None
    """Seconds after which a run is given up."""

    def __post_init__(self) -> None:
        """Check that the command has its places.

        Raises:
            IneError: It cannot be split into words, or a place is missing.
        """
        try:
            words = " ".join(shlex.split(self.command))
        except ValueError as error:
            raise IneError(f"command {self.command!r}: cannot be read ({error})") from error
        if "{out}" not in words or ("{prompts}" in words) == ("{text}" in words):
            raise IneError(
                f"command {self.command!r}: expected {{out}}, and either {{prompts}} (JSON lines "
                "with prompt and seed) or {text} (one prompt per line)"
            )

    @property
    def name(self) -> str:
        """Return the command."""
        return f"command:{self.command}"

    def __call__(self, requests: Sequence[PictureRequest]) -> Made:
        """Return the pictures.

        Raises:
            IneError: The command cannot be run or fails, or a prompt has several lines and the
                command wants one per line.
            PicturesError: It left other than one readable picture per prompt, or several sizes.
        """
        with tempfile.TemporaryDirectory(prefix="ine-refine-") as place:
            out = Path(place) / "out"
            out.mkdir()
            places = {**self._prompts(Path(place), requests), "{out}": str(out)}
            self._run([_filled(word, places) for word in shlex.split(self.command)])
            return self._pictures(out, requests)

    def _prompts(self, folder: Path, requests: Sequence[PictureRequest]) -> dict[str, str]:
        """Write the prompts as the command wants them; return {place: file}."""
        if "{prompts}" in self.command:
            rows = [{"prompt": one.prompt, "seed": one.seed} for one in requests]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            place, file = "{prompts}", folder / "prompts.jsonl"
        else:
            lines = [one.prompt for one in requests]
            place, file = "{text}", folder / "prompts.txt"
            for line in lines:
                if len(line.splitlines()) != 1:
                    raise IneError(
                        f"{self.name}: the prompt {line[:60]!r} does not stand on one line, as "
                        "{text} wants it; let the command read {prompts}, JSON lines"
                    )
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return {place: str(file)}

    def _run(self, words: Sequence[str]) -> None:
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=self.timeout
            )
        except subprocess.TimeoutExpired as error:
            raise IneError(
                f"{self.name}: took more than {self.timeout:g} s; give it more"
            ) from error
        except OSError as error:
            raise IneError(f"{self.name}: cannot be run ({error}); correct the command") from error
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-SHOWN:]
            raise IneError(
                f"{self.name}: ended with code {done.returncode} ({said or 'it said nothing'}); "
                "correct the command and run again, which resumes"
            )

    def _pictures(self, out: Path, requests: Sequence[PictureRequest]) -> Made:
        files = sorted(path for path in out.rglob("*") if path.suffix.lower() in SUFFIXES)
        if len(files) != len(requests):
            raise PicturesError(
                f"{self.name}: left {len(files)} pictures for {len(requests)} prompts; it has to "
                "leave one per prompt in {out}, whose names sort in the order of the prompts"
            )
        pictures = [read_whole(path) for path in files]
        return stacked(pictures, self.name), [{} for _ in files], [0] * len(files)


def _filled(word: str, places: dict[str, str]) -> str:
    for place, file in places.items():
        word = word.replace(place, file)
    return word


def stacked(pictures: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Return pictures of one size as one array, uint8 (B, H, W, 3).

    Raises:
        PicturesError: They have several sizes.
    """
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        raise PicturesError(
            f"{name}: gave pictures of several sizes, {sorted(sizes)} (height, width); let it make "
            "one size"
        )
    return np.stack(pictures)
