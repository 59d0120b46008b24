"""Types of options: finite numbers, devices, overrides, weights files, outputs."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ine.errors import CheckpointError
from ine.files import user_path
from ine.weights.stack import Layer, parse_layer

DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class Finite(click.types.FloatParamType):
    """A finite number: `nan` compares with nothing, and `inf` is no setting."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class FiniteRange(Finite, click.FloatRange):
    """A finite number in a range."""


class Device(click.ParamType):
    """The name of a torch device; it is looked for only when it is used."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as given, or fail."""
        if not DEVICES.fullmatch(value):
            self.fail(f"{value!r} is not auto, cpu, mps, cuda or cuda:N", param, ctx)
        return value


class Override(click.ParamType):
    """A recipe override, "section.key=value"; the recipe itself checks key and value."""

    name = "key=value"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as given, or fail."""
        key, sign, _ = value.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            self.fail(f"{value!r} is not of the form section.key=value", param, ctx)
        return value


class UnetFile(click.ParamType):
    """A file or folder of unlearned weights, optionally followed by ":WEIGHT"."""

    name = "file"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Layer:
        """Return the `Layer`, or fail."""
        try:
            return parse_layer(value)
        except CheckpointError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the files that an environment variable names; an existing path is one file."""
        return [rv] if os.path.exists(user_path(rv)) else super().split_envvar_value(rv)


class OutPath(click.Path):
    """Where to write; `ine.cli.writing` finds out whether that is possible."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(
        self, value: str | os.PathLike, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path, or fail if it is empty: that would mean the current folder."""
        if not str(value).strip():
            self.fail("it is empty, as a variable that is not set; give a name", param, ctx)
        return Path(os.fsdecode(super().convert(value, param, ctx)))
