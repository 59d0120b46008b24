"""What the pickle in a torch file may name, call and store; all else is refused.

Files of weights contain names, numbers and stored tensors.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ine.weights import numpy_pickles
from ine.weights.pickles import Dict, List, Name, Rules

STEP_LIMIT = 1_000_000
"""Instructions of one pickle; SDXL's full checkpoint has about 100,000."""

MOST_DIMENSIONS = 16

ITEM_BYTES = {
    **{"ComplexDouble": 16, "ComplexFloat": 8, "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2},
    **{"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1},
}
STORAGES = {
    **{f"torch.{kind}Storage": size for kind, size in ITEM_BYTES.items()},
    **{f"torch.cuda.{kind}Storage": size for kind, size in ITEM_BYTES.items()},
    "torch.storage.UntypedStorage": 1,
}
"""Class named by a pickle -> bytes per item."""

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Code in safetensors -> dtype that weights and vectors may have. Narrower dtypes are those of
quantised weights; torch cannot even convert some of them."""

TENSORS = {f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3")}
PARAMETER = "torch._utils._rebuild_parameter"
DICTS = {"collections.OrderedDict", "collections.Counter"}
PLAIN = {"torch.Size", "torch.device"}
SETS = {"builtins.set", "__builtin__.set"}
FROM_NUMPY = "torch._utils._rebuild_device_tensor_from_numpy"
ENCODE = "_codecs.encode"
OBJECTS = {"torch.nn.modules.container.ParameterDict"}
"""Classes of which only the state is needed; who loads such a file registers them with torch."""

NAMES = {
    *(*STORAGES, *TENSORS, PARAMETER, FROM_NUMPY, ENCODE, *DICTS, *PLAIN, *SETS, *OBJECTS),
    *(*numpy_pickles.FUNCTIONS, *numpy_pickles.CLASSES),
}
DTYPES = ("torch.float", "torch.bfloat16", "torch.int", "torch.uint", "torch.bool")
INSTRUCTIONS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
        *("SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "EMPTY_DICT", "EMPTY_LIST"),
        *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPERSID", "NEWOBJ"),
    )
)


@dataclass(frozen=True)
class Stored:
    """Stand-in for a storage."""

    nbytes: int
    numel: int


class _Object:
    """Stand-in for an object of which only the state is needed."""


class _Thing:
    """Stand-in for a tensor, or for what is made of plain values."""


def torch_rules(store: Callable[..., Stored] | None = None) -> Rules:
    """Return the rules for a pickle of a torch file.

    Args:
        store: Returns the stand-in for a storage: called with class name, key, location and
            number of items (and a view). None for pickles without tensors.
    """
    return Rules(
        instructions=INSTRUCTIONS,
        most_steps=STEP_LIMIT,
        name=_known,
        call=_called,
        build=_build,
        load=partial(_stored, store=store),
    )


def _known(name: str) -> Name:
    dtype = name.startswith(DTYPES) and name.count(".") == 1
    if dtype or name in NAMES:
        return Name(name)
    raise pickle.UnpicklingError(f"GLOBAL {name[:200]} is not one that plain weights need")


def _build(target: object, state: object) -> None:
    if isinstance(target, numpy_pickles.Dtype | numpy_pickles.Array):
        target.__setstate__(state)
        return
    plain = isinstance(target, Dict) and isinstance(state, Dict)
    if not plain and not isinstance(target, _Object):
        raise pickle.UnpicklingError("state is set on something else than a dict")


def _stored(saved: object, store: Callable[..., Stored] | None) -> Stored:
    """Return the stand-in for a storage, from its persistent id."""
    if isinstance(saved, tuple) and saved[:1] == ("module",):
        raise pickle.UnpicklingError("a whole module with its source is stored, not its weights")
    match saved:
        case ("storage" | b"storage", Name(text=kind), key, location, numel, *view) if (
            store and kind in STORAGES and type(numel) is int and numel >= 0
        ):
            if not isinstance(key, str) or not isinstance(location, str | bytes):
                raise ValueError("a storage has no name")
            return store(kind, key, location, numel, *view)
    raise ValueError("a storage is not described as torch does")


def _called(function: object, args: Any, instruction: str) -> object:
    """Return the stand-in for the result of a call that plain weights need."""
    name = function.text if isinstance(function, Name) else ""
    if name in OBJECTS and args == ():
        return _Object()
    if instruction == "NEWOBJ":
        raise pickle.UnpicklingError(f"an object of {name or 'something'} is made")
    if name in TENSORS:
        match args:
            case (Stored() as stored, int(offset), tuple(shape), tuple(strides), *_):
                _check_view(stored, offset, shape, strides)
                return _Thing()
        raise ValueError("a tensor is not described as torch does")
    if name == PARAMETER and isinstance(args, tuple) and isinstance(args[0], _Thing):
        return _Thing()
    if name in DICTS and (args == () or (type(args) is tuple and isinstance(args[0], Dict))):
        return Dict()
    if name in PLAIN and isinstance(args, tuple):
        return _Thing()
    if type(args) is tuple and (name in numpy_pickles.FUNCTIONS or name in (ENCODE, FROM_NUMPY)):
        return _of_numpy(name, args)
    if name in SETS and type(args) is tuple and all(isinstance(a, List) and a.flat for a in args):
        return _Thing()
    raise pickle.UnpicklingError(f"{name or 'a value'} is called, which plain weights do not need")


def _of_numpy(name: str, args: tuple[Any, ...]) -> object:
    """Return the results of numpy's functions for plain numbers, and of torch's for its arrays."""
    if name == FROM_NUMPY:
        match args:
            case (numpy_pickles.Array(), Name(text=dtype), str(), bool()) if dtype.startswith(
                DTYPES
            ):
                return _Thing()
        raise ValueError("a tensor of another device is not described as torch does")
    classes = numpy_pickles.CLASSES
    plain = (classes.get(a.text, a) if isinstance(a, Name) else a for a in args)
    function: Callable[..., object] = (
        numpy_pickles.encode if name == ENCODE else numpy_pickles.FUNCTIONS[name]
    )
    try:
        return function(*plain)
    except TypeError as error:
        raise pickle.UnpicklingError(f"{name} is called otherwise than numpy does") from error


def _check_view(
    stored: Stored, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> None:
    """Refuse a tensor that has more values than its storage, or reaches beyond it.

    torch enlarges a storage if a tensor reaches beyond it. Strides of 0 make a terabyte of one
    number; trained tensors do not have them.
    """
    numbers = (offset, *shape, *strides)
    fine = len(shape) == len(strides) <= MOST_DIMENSIONS
    if not fine or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("a tensor is not described as torch does")
    reach = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if math.prod(shape) > stored.numel or (all(shape) and reach > stored.numel):
        raise ValueError(
            f"a tensor of shape {shape} is larger than the {stored.numel} values stored"
        )
