"""Find and read best.onnx, the weights of NudeNet 3.0.8.

NudeNet 3.4 no longer has the file. It is in the wheel of nudenet 3.0.8, which the user downloads;
ine has no copy.
"""

import os
import zipfile
from pathlib import Path

from ine.detectors.nudenet import package_folder
from ine.errors import MissingDependency, ModelError
from ine.files import sha256_of, user_path

VARIABLE = "INE_NUDENET_308"
"""Environment variable with the path of best.onnx, of nudenet 3.0.8's wheel, or of a folder that
holds one of them."""

BEST = "best.onnx"
BEST_SHA256 = "9832f15515bdb06bcb5a77beb60bc8ea54439bd7ecbaac46dac3b760b3dd13cc"
"""Of best.onnx in nudenet 3.0.8, in OPTML-Group/Diffusion-MU-Attack and in CharlesGong12/RECE; its
git blob is 12f4f7808735fb2f8a0fb9beca635a1426bfdcad."""

BEST_LIMIT = 100_000_000
"""Largest number of bytes to read; the file has 12,125,773."""

WHEEL = "nudenet-3.0.8-py3-none-any.whl"


def find_best(place: str | Path | None = None, detector: str = "nudenet-3.0.8") -> Path:
    """Return the file that holds best.onnx: itself, or the wheel of nudenet 3.0.8.

    Args:
        place: That file, or a folder with one of them; by default the value of `INE_NUDENET_308`,
            else the folder of an installed nudenet 3.0.8.
        detector: Name of the detector, for the error.

    Raises:
        MissingDependency: The file is not on this machine.
    """
    named = place or os.environ.get(VARIABLE)
    here = None if named else package_folder()
    at = user_path(named) if named else here
    for path in (at, *(at / name for name in (BEST, f"nudenet/{BEST}", WHEEL))) if at else ():
        if path.is_file():
            return path
    reason = f"{named}: no {BEST} there" if named else f"{VARIABLE} is not set"
    raise MissingDependency(
        f"detector {detector!r} needs the weights {BEST} of NudeNet 3.0.8, which are not on this "
        f"machine ({reason}). Get its wheel with `pip download --no-deps nudenet==3.0.8` (10 MB; "
        "do not install it, ine needs 3.4) and "
        f"set {VARIABLE} to the .whl; or add +320n to the rule's name: the same code with "
        "the weights of NudeNet 3.4, which gives other figures"
    )


def read_best(place: str | Path | None = None, detector: str = "nudenet-3.0.8") -> bytes:
    """Return the content of best.onnx, see `find_best`.

    Raises:
        MissingDependency: It is not on this machine.
        ModelError: The file cannot be read, or holds other weights.
    """
    path = find_best(place, detector)
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                member = wheel.getinfo(f"nudenet/{BEST}")
                # A larger file is another one, which its digest shows below.
                content = wheel.open(member).read(BEST_LIMIT)
        else:
            content = path.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: {BEST} of nudenet 3.0.8 cannot be read ({error})") from error
    digest = sha256_of(content)
    if digest != BEST_SHA256:
        raise ModelError(
            f"{path}: holds other weights than {BEST} of nudenet 3.0.8 (SHA-256 {digest[:12]}..., "
            f"expected {BEST_SHA256[:12]}...); rules of that name need those; +320n behind "
            "a rule's name takes the weights of NudeNet 3.4"
        )
    return content
