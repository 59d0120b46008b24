"""Q16's learned prompts, a pickled numpy array, read without an unpickler.

`pickle.load` and `numpy.load(allow_pickle=True)` run whatever a file asks for. Here the few
instructions that numpy's own pickling of one array uses are followed with stand-ins; only the
array's bytes are taken out, and nothing that a file names is ever looked up or called.
"""

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ine.errors import ModelError

LABEL = "inappropriate"
"""What the second prompt stands for."""

WIDTHS = (768, 512)
FILE_LIMIT = 1_000_000
"""Bytes; two prompts of 768 float64 have 12,288."""

STEP_LIMIT = 1000
"""Instructions; protocol 0 needs about 70."""

NDARRAY, DTYPE, ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
FROM_BUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
KNOWN = {NDARRAY, DTYPE, ENCODE} | RECONSTRUCT | FROM_BUFFER
FLOATS = ("f2", "f4", "f8")
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True)
class _Name:
    """Stand-in for a class or function."""

    text: str


@dataclass
class _Dtype:
    """Stand-in for a dtype."""

    kind: str
    order: str = "<"


@dataclass
class _Array:
    """Stand-in for an array."""

    shape: tuple = ()
    dtype: _Dtype | None = None
    fortran: bool = False
    data: bytes = b""


def read_q16_prompts(path):
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


def _array_in(raw):
    if raw.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(raw), allow_pickle=False)
    if raw[8:9] == b"{":
        from safetensors.numpy import load

        tensors = load(raw)
        if len(tensors) != 1:
            raise ValueError(f"it holds {len(tensors)} tensors, one is expected")
        return next(iter(tensors.values()))
    return _to_numpy(_walk(raw))


def _to_numpy(found):
    if not isinstance(found, _Array) or found.dtype is None:
        raise ValueError("it holds no numpy array")
    dtype = np.dtype(found.dtype.order + found.dtype.kind)
    shape = found.shape
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 < n < 2**16 for n in shape):
        raise ValueError(f"its shape is {str(shape)[:60]}")
    if len(shape) > 4 or int(np.prod(shape)) * dtype.itemsize != len(found.data):
        raise ValueError(f"its shape {shape} does not fit {len(found.data)} bytes of {dtype}")
    return np.frombuffer(found.data, dtype).reshape(shape, order="F" if found.fortran else "C")


def _walk(raw):
    """Return the stand-in of a pickle's value."""
    stack, marks, memo = [], [], {}
    for step, (opcode, arg, _) in enumerate(pickletools.genops(raw)):
        name = opcode.name
        if step > STEP_LIMIT:
            raise pickle.UnpicklingError(f"over {STEP_LIMIT} instructions")
        if name == "STOP":
            if len(stack) != 1 or marks:
                raise ValueError("its pickle does not end in one value")
            return stack[0]
        if name in ("PROTO", "FRAME"):
            continue
        if name in VALUES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name == "TUPLE":
            items, stack = tuple(stack), marks.pop()
            stack.append(items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(arg)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(arg)])
        elif name == "GLOBAL":
            stack.append(_known(arg.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(f"{module}.{attribute}"))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_called(function, args))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        else:
            raise pickle.UnpicklingError(f"instruction {name}")
    raise ValueError("its pickle is cut short")


def _known(name):
    if name not in KNOWN:
        raise pickle.UnpicklingError(f"it names {name[:100]}")
    return _Name(name)


def _called(function, args):
    """Return what stands for the result of a call, if numpy's pickling of an array makes it."""
    name = function.text if isinstance(function, _Name) else ""
    match args:
        case (_Name(text=kind), (0,), bytes()) if name in RECONSTRUCT and kind == NDARRAY:
            return _Array()
        case (str(kind), False, True) if name == DTYPE and kind in FLOATS:
            return _Dtype(kind)
        case (str(text), "latin1") if name == ENCODE:
            return text.encode("latin1")
        case (bytearray() as data, _Dtype() as dtype, tuple(shape), "C" | "F" as order) if (
            name in FROM_BUFFER
        ):
            return _Array(shape, dtype, order == "F", bytes(data))
    raise pickle.UnpicklingError(f"it calls {name or 'a value'} otherwise than numpy does")


def _build(target, state):
    match target, state:
        case _Dtype(), (3, "<" | ">" | "=" as order, None, None, None, -1, -1, 0):
            target.order = order
        case _Array(), (1, tuple(shape), _Dtype() as dtype, bool(fortran), bytes(data)):
            target.shape, target.dtype, target.fortran, target.data = shape, dtype, fortran, data
        case _:
            raise pickle.UnpicklingError("it sets a state that numpy does not")
