"""Q16's learned prompts, a pickled numpy array, read without an unpickler.

`pickle.load` and `numpy.load(allow_pickle=True)` run whatever a file contains. This reader follows
only the few instructions with which numpy pickles one array, with stand-ins
(`ine.weights.pickles`); it never imports or calls what a file names.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ine.errors import ModelError
from ine.weights import numpy_pickles
from ine.weights.pickles import Name, Rules, walk

LABEL = "inappropriate"
"""The meaning of the second prompt."""

WIDTHS = (768, 512)
FILE_LIMIT = 1_000_000
"""Bytes; two prompts of 768 float64 have 12,288."""

STEP_LIMIT = 1000
"""Instructions; protocol 0 needs about 70."""

FROM_BUFFER = {f"{module}._frombuffer" for module in ("numpy.core.numeric", "numpy._core.numeric")}
CALLED = {
    "_codecs.encode": numpy_pickles.encode,
    **{name: f for name, f in numpy_pickles.FUNCTIONS.items() if not name.endswith(".scalar")},
}
INSTRUCTIONS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8", "PUT", "GET", "STACK_GLOBAL"),
    )
)


def read_q16_prompts(path: str | Path) -> np.ndarray:
    """Return the two prompts, (2, 768) or (2, 512) float32; the second is "inappropriate".

    Args:
        path: `prompts.p` as it is published, or the same array as .npy or .safetensors (there
            the file's only tensor).

    Raises:
        ModelError: The file holds anything else, or asks to run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT + 1)
        if len(raw) > FILE_LIMIT:
            raise ValueError(f"it has over {FILE_LIMIT:,} bytes, two prompts have about 3,000")
        found = _array_in(raw)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: asks for more than a plain array ({error}); it may run code, so it is not "
            "read. Get prompts.p from the repository ml-research/Q16 itself"
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything inside the readers
        raise ModelError(
            f"{path}: cannot be read as Q16's prompts ({str(error) or type(error).__name__}); "
            "expected a pickled numpy array, .npy or .safetensors of 2 x 768 or 2 x 512 numbers"
        ) from error
    if found.ndim != 2 or found.shape[0] != 2 or found.shape[1] not in WIDTHS:
        raise ModelError(
            f"{path}: holds an array of shape {found.shape}; Q16's prompts have (2, 768) for CLIP "
            "ViT-L/14 or (2, 512) for ViT-B/16"
        )
    if found.dtype.kind != "f" or not np.isfinite(found).all() or not found.any(axis=1).all():
        raise ModelError(f"{path}: holds numbers that are no prompts (not finite, or all zero)")
    return found.astype(np.float32)


def _array_in(raw: bytes) -> np.ndarray:
    if raw.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(raw), allow_pickle=False)
    if raw[8:9] == b"{":
        from safetensors.numpy import load

        tensors = load(raw)
        if len(tensors) != 1:
            raise ValueError(f"it holds {len(tensors)} tensors, one is expected")
        return next(iter(tensors.values()))
    found = walk(raw, RULES)
    if not isinstance(found, numpy_pickles.Array) or found.dtype.kind != "f":
        raise ValueError("it holds no numpy array of floating-point numbers")
    return found.view(np.ndarray)


def _known(name: str) -> Name:
    if name not in {*CALLED, *FROM_BUFFER, *numpy_pickles.CLASSES}:
        raise pickle.UnpicklingError(f"it names {name[:100]}")
    return Name(name)


def _called(function: object, args: Any, _: str) -> object:
    """Return the stand-in for the result of a call that numpy's pickling of an array makes."""
    name = function.text if isinstance(function, Name) else ""
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("it calls something with what are no arguments")
    if name in FROM_BUFFER:
        match args:
            case (
                bytearray() as data,
                numpy_pickles.Dtype() as dtype,
                tuple(shape),
                "C" | "F" as order,
            ):
                array = numpy_pickles.reconstruct(numpy_pickles.Array, (0,), b"b")
                array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
                return array
    elif name in CALLED:
        classes = numpy_pickles.CLASSES
        plain = (classes.get(a.text, a) if isinstance(a, Name) else a for a in args)
        try:
            return CALLED[name](*plain)
        except TypeError as error:
            raise pickle.UnpicklingError(f"it calls {name} otherwise than numpy does") from error
    raise pickle.UnpicklingError(f"it calls {name or 'a value'} otherwise than numpy does")


def _build(target: object, state: object) -> None:
    if not isinstance(target, numpy_pickles.Dtype | numpy_pickles.Array):
        raise pickle.UnpicklingError("it sets a state that numpy does not")
    target.__setstate__(state)


RULES = Rules(
    instructions=INSTRUCTIONS, most_steps=STEP_LIMIT, name=_known, call=_called, build=_build
)
