"""Numpy numbers and arrays in a torch file, rebuilt without numpy's own unpickling.

Ordinary embeddings and checkpoints have some: a step counter that was a numpy integer, and every
tensor that torch 1.12 saved on Apple's MPS. What numpy writes for them is always the same few
calls. The stand-ins here follow these calls for plain numbers and refuse anything else: arrays of
objects, subclasses, other codecs. `ine.weights.torch_pickles` calls them while it checks a file,
and torch gets them under numpy's names while it loads one.
"""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

NUMBERS = {
    *("f2", "f4", "f8", "b1"),
    *("i1", "i2", "i4", "i8"),
    *("u1", "u2", "u4", "u8"),
}
"""Codes of the dtypes that are read."""

MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where numpy 1 and numpy 2 keep their functions."""

MOST_DIMENSIONS = 16


class Dtype:
    """Stand-in for `numpy.dtype`."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        # Anything but a text is refused unseen: a tuple that holds itself often, hashed or
        # written out, takes forever.
        if not isinstance(code, str) or code not in NUMBERS:
            found = repr(code[:20]) if isinstance(code, str) else f"a {type(code).__name__}"
            raise pickle.UnpicklingError(f"a numpy dtype {found} is not one of plain numbers")
        if align not in (False, 0) or copy not in (True, 1):
            raise pickle.UnpicklingError("a numpy dtype is made otherwise than numpy does")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | ">" | "|" | "=" as order, None, None, None, -1, -1, 0):
                self.order = order
            case _:
                raise pickle.UnpicklingError("a numpy dtype is described as numpy does not")

    @property
    def plain(self) -> np.dtype:
        """Numpy's own dtype."""
        return np.dtype(self.order + self.code)


class Array(np.ndarray):
    """Stand-in for `numpy.ndarray`; empty until its state is set."""

    def __setstate__(self, state: Any) -> None:
        match state:
            case (1, tuple(shape), Dtype() as dtype, bool(fortran), bytes() as data):
                pass
            case _:
                raise pickle.UnpicklingError("a numpy array holds something else than numbers")
        counts = all(type(n) is int and 0 <= n < 2**40 for n in shape)
        if not counts or len(shape) > MOST_DIMENSIONS:
            raise ValueError("a numpy array is not described as numpy does")
        wanted = dtype.plain.itemsize
        for n in shape:
            wanted *= n
        if wanted != len(data):
            raise ValueError(f"a numpy array of {wanted} bytes has {len(data)}")
        # Torch reads the machine's own order of bytes only.
        native = np.frombuffer(data, dtype.plain).astype(dtype.plain.newbyteorder("="))
        content: Any = (1, shape, native.dtype, fortran, native.tobytes())
        super().__setstate__(content)


def reconstruct(kind: object, shape: object, code: object) -> Array:
    """Stand in for numpy's `_reconstruct`: an array without numbers, whose state follows."""
    if kind is not Array or shape != (0,) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("a numpy array is made of another class")
    return np.ndarray.__new__(Array, (0,), "i1")


def scalar(dtype: object, data: object) -> int | float | bool:
    """Stand in for numpy's `scalar`: one number, as Python's int, float or bool."""
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar is something else than a number")
    if len(data) != dtype.plain.itemsize:
        raise ValueError(f"a numpy number of type {dtype.code} has {len(data)} bytes")
    return np.frombuffer(data, dtype.plain)[0].item()


def encode(text: object, codec: object) -> bytes:
    """Stand in for `_codecs.encode`, which protocol 2 uses to write bytes."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError("bytes are written in a codec that pickle does not use")
    return text.encode("latin1")


FUNCTIONS: dict[str, Callable] = {
    "numpy.dtype": Dtype,
    **{f"{module}._reconstruct": reconstruct for module in MODULES},
    **{f"{module}.scalar": scalar for module in MODULES},
}
"""Functions that a file may call, by their names in it; torch itself allows `_codecs.encode`."""

CLASSES: dict[str, type] = {"numpy.ndarray": Array}
"""Classes that a file may name but not call."""


def torch_globals() -> list:
    """Return the stand-ins to register with torch's restricted unpickler, each by its own name."""
    return [*(_under(name, f) for name, f in FUNCTIONS.items() if f is not Dtype), Dtype, Array]


def _under(path: str, function: Callable) -> Callable:
    """Return the function under the name that it has in files."""

    def stand_in(*args: object) -> object:
        return function(*args)

    stand_in.__module__, _, stand_in.__name__ = path.rpartition(".")
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


for _class, _name in ((Dtype, "dtype"), (Array, "ndarray")):
    _class.__module__, _class.__name__, _class.__qualname__ = "numpy", _name, _name
