"""What a torch file would call and allocate, told from its bytes before anything is loaded.

`torch.load(weights_only=True)` runs no foreign code, but calls what it does allow: a file of a
hundred bytes can ask it for `bytearray(10**12)`, for a storage of a terabyte, or for the hash of
a tuple that holds itself sixty times over. Files of weights need none of that. Here the pickle is
walked with stand-ins for values, and what is more than names, numbers and stored tensors is
refused; then torch reads it, with its own limits on top.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from dataclasses import dataclass

import torch

STEP_LIMIT = 1_000_000
"""Instructions of one pickle; SDXL's full checkpoint has about 100,000."""

PICKLE_LIMIT = 50_000_000
"""Bytes of one text in a pickle, and of the pickle in a zip; 200 per tensor are usual."""

DIRECTORY_LIMIT = 16_000_000
"""Bytes of a zip directory; 100 per tensor are usual."""

MOST_DIMENSIONS = 16

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a torch file from before 1.6."""

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
"""Code in safetensors -> dtype that weights and vectors may have. Narrower ones are those of
quantised weights; torch cannot even convert some."""

TENSORS = {f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3")}
PARAMETER = "torch._utils._rebuild_parameter"
DICTS = {"collections.OrderedDict", "collections.Counter"}
PLAIN = {"torch.Size", "torch.device"}
SETS = {"builtins.set", "__builtin__.set"}
OBJECTS = {"torch.nn.modules.container.ParameterDict"}
"""Classes of which only the state is wanted; whether they may be made, torch is told elsewhere."""

DTYPES = ("torch.float", "torch.bfloat16", "torch.int", "torch.uint", "torch.bool")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    *("SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
}


@dataclass(frozen=True)
class _Name:
    """Stand-in for a class or function."""

    text: str


@dataclass(frozen=True)
class _Stored:
    """Stand-in for a storage."""

    nbytes: int
    numel: int


class _Dict:
    """Stand-in for a dict of any kind."""


class _List:
    """Stand-in for a list."""

    def __init__(self):
        self.items = []

    @property
    def flat(self):
        """Whether it holds neither tuple nor list."""
        return not any(isinstance(item, tuple | _List) for item in self.items)


class _Object:
    """Stand-in for an object of which only the state is wanted."""


class _Thing:
    """Stand-in for a tensor, or for what is made of plain values."""


def load_torch_file(path, mapped=False):
    """Return what `torch.save` was given, after `check_torch_file`; no code runs.

    Args:
        path: The file; torch goes by its extension where it is mapped.
        mapped: Map tensors instead of reading them, which only the zip format allows.

    Raises:
        pickle.UnpicklingError: As there, or torch itself refuses it.
        Exception: Damaged bytes raise nearly anything inside the unpickler.
    """
    check_torch_file(path)
    with warnings.catch_warnings(), open(path, "rb") as file:
        # torch warns of pickle protocols and old storages; whether it loads says enough.
        warnings.simplefilter("ignore")
        if mapped and file.read(2) == b"PK":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def check_torch_file(path):
    """Raise unless a torch file is plain: names, numbers, and tensors that it really stores.

    Raises:
        pickle.UnpicklingError: It names code, after the word GLOBAL, or needs instructions that
            plain weights do not.
        ValueError: It is damaged, or claims more than the file holds.
        OSError: It cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            _check_zip(file, size) if is_zip else _check_legacy(_Bounded(file, size), size)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, LookupError) as error:
            raise ValueError(str(error) or type(error).__name__) from error


class _Bounded:
    """A file of which no more is asked than it has, since a read reserves what it asks for."""

    def __init__(self, file, size):
        self.file, self.size = file, size
        self.tell = file.tell

    def read(self, count):
        if count > PICKLE_LIMIT:
            raise ValueError(f"its pickle claims a text of {count} bytes")
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self):
        return self.file.readline(1000)

    def read_at(self, place, count):
        self.file.seek(place)
        return self.read(count)


def _check_legacy(file, size):
    """Check the five pickles of a file from before torch 1.6."""
    stored, left = {}, size

    def store(kind, key, _location, numel, view=None):
        nonlocal left
        if view is not None:
            raise ValueError("a storage is a view of another one")
        if key not in stored:
            stored[key] = _Stored(numel * STORAGES[kind], numel)
            left -= stored[key].nbytes
        if left < 0:
            raise ValueError(f"its tensors claim over {size - left} bytes, the file has {size}")
        return stored[key]

    if _walk(file) != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    for _ in ("protocol", "system"):
        _walk(file)
    _walk(file, store)
    keys = _walk(file)
    if not isinstance(keys, _List) or not all(isinstance(key, str) for key in keys.items):
        raise ValueError("its list of storages is damaged")
    if len(keys.items) != len(stored) or set(keys.items) != stored.keys():
        raise ValueError("its list of storages is not that of its tensors")
    at = file.tell()
    for key in keys.items:
        numel = int.from_bytes(file.read_at(at, 8), "little")
        at += 8 + stored[key].nbytes
        # torch reserves what is said here.
        if numel != stored[key].numel or at > size:
            raise ValueError(f"storage {key[:80]} is cut short or of another size")


def _check_zip(file, size):
    """Check the members and the pickle of a file since torch 1.6."""
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    prefix = members[0].filename.split("/")[0] if members else ""
    records = {}
    for member in members:
        name = member.filename
        # torch finds records whatever their case, so the names must differ by more than that.
        if name.lower() in records:
            raise ValueError(f"member {name[:80]!r} is there twice")
        if not name.startswith(f"{prefix}/") or ".." in name.split("/") or "\\" in name:
            raise ValueError(f"member {name[:80]!r} is outside of the folder {prefix[:80]!r}")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"member {name[:80]!r} is compressed, which torch.save never does")
        records[name.lower()] = member
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members claim more bytes than the file has")
    if f"{prefix}/data.pkl".lower() not in records:
        raise ValueError("it is a zip archive, but not one that torch.save wrote")

    def store(kind, key, _location, numel):
        nbytes = numel * STORAGES[kind]
        member = records.get(f"{prefix}/data/{key}".lower())
        found = member.file_size if member else 0
        if nbytes != found:
            raise ValueError(f"storage {key[:80]} claims {nbytes} bytes, {found} are there")
        return _Stored(nbytes, numel)

    member = records[f"{prefix}/data.pkl".lower()]
    if member.file_size > PICKLE_LIMIT:
        raise ValueError(f"its pickle has {member.file_size} bytes")
    file.seek(member.header_offset)
    head = file.read(30)
    if head[:4] != b"PK\x03\x04":
        raise ValueError("its zip directory points to nothing")
    file.seek(sum(struct.unpack("<HH", head[26:30])), os.SEEK_CUR)
    _walk(io.BytesIO(file.read(member.file_size)), store)


def _check_directory(file, size):
    """Refuse directories that two readers of zip files could understand differently."""
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("it has no zip directory at its end")
    length, start = struct.unpack("<II", end[12:20])
    at = size - 22
    if length == 0xFFFFFFFF or length > DIRECTORY_LIMIT:
        raise ValueError(f"its zip directory claims {length} bytes")
    file.seek(max(0, size - 22 - 20))
    if file.read(4) == b"PK\x06\x07":  # files over 4 GB have a second, wider end record
        at -= 20 + 56
        file.seek(max(0, at))
        wide = file.read(56)
        if wide[:4] != b"PK\x06\x06":
            raise ValueError("its zip directory is damaged")
        length, start = struct.unpack("<QQ", wide[40:56])
    if start + length != at:
        raise ValueError("its zip directory is not where it says")
    file.seek(0)


def _walk(file, store=None):
    """Return the stand-in of a pickle's value; the file is left after it.

    Args:
        file: Read from where it is.
        store: What a storage becomes: called with class name, key, location and number of items
            (and a view), returns `_Stored`. None where there may be none.
    """
    stack, marks, memo = [], [], {}
    for step, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if step > STEP_LIMIT:
            raise ValueError(f"its pickle has over {STEP_LIMIT} instructions, weights need less")
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
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(_Dict() if name == "EMPTY_DICT" else _List())
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise ValueError("its pickle is damaged")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "SETITEMS":
                _check_keys(stack[-1], items[::2])
            else:
                _append(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        elif name == "SETITEM":
            _, key = stack.pop(), stack.pop()
            _check_keys(stack[-1], [key])
        elif name == "BUILD":
            state = stack.pop()
            plain = isinstance(stack[-1], _Dict) and isinstance(state, _Dict)
            if not plain and not isinstance(stack[-1], _Object):
                raise pickle.UnpicklingError("state is set on something else than a dict")
        elif name == "BINPERSID":
            stack.append(_stored(stack.pop(), store))
        elif name == "GLOBAL":
            stack.append(_known(arg.replace(" ", ".", 1)))
        elif name in ("STACK_GLOBAL", "INST"):
            found = arg.replace(" ", ".", 1) if arg else ".".join(map(str, stack[-2:]))
            raise pickle.UnpicklingError(f"GLOBAL {found[:200]} is asked for by {name}")
        elif name in ("REDUCE", "NEWOBJ"):
            args = stack.pop()
            stack[-1] = _called(stack[-1], args, name)
        else:
            raise pickle.UnpicklingError(f"instruction {name} is none that plain weights need")
    raise ValueError("its pickle is cut short")


def _known(name):
    dtype = name.startswith(DTYPES) and name.count(".") == 1
    if dtype or name in {*STORAGES, *TENSORS, PARAMETER, *DICTS, *PLAIN, *SETS, *OBJECTS}:
        return _Name(name)
    raise pickle.UnpicklingError(f"GLOBAL {name[:200]} is none that plain weights need")


def _append(target, items):
    if not isinstance(target, _List):
        raise pickle.UnpicklingError("something is appended to what is no list")
    target.items += items


def _check_keys(target, keys):
    # A tuple that holds tuples may take years to hash; no state dict has one for a key.
    if not isinstance(target, _Dict) or any(isinstance(key, tuple) for key in keys):
        raise pickle.UnpicklingError("a dict has other keys than names and numbers")


def _stored(saved, store):
    """Return what stands for a storage, from its persistent id."""
    if isinstance(saved, tuple) and saved[:1] == ("module",):
        raise pickle.UnpicklingError("a whole module with its source is stored, not its weights")
    match saved:
        case ("storage" | b"storage", _Name(text=kind), key, location, numel, *view) if (
            store and kind in STORAGES and type(numel) is int and numel >= 0
        ):
            if not isinstance(key, str) or not isinstance(location, str | bytes):
                raise ValueError("a storage has no name")
            return store(kind, key, location, numel, *view)
    raise ValueError("a storage is not described as torch does")


def _called(function, args, instruction):
    """Return what stands for the result of a call, if it is one that plain weights need."""
    name = function.text if isinstance(function, _Name) else ""
    if name in OBJECTS and args == ():
        return _Object()
    if instruction == "NEWOBJ":
        raise pickle.UnpicklingError(f"an object of {name or 'something'} is made")
    if name in TENSORS:
        match args:
            case (_Stored() as stored, int(offset), tuple(shape), tuple(strides), *_):
                _check_view(stored, offset, shape, strides)
                return _Thing()
        raise ValueError("a tensor is not described as torch does")
    if name == PARAMETER and isinstance(args, tuple) and isinstance(args[0], _Thing):
        return _Thing()
    if name in DICTS and (args == () or (type(args) is tuple and isinstance(args[0], _Dict))):
        return _Dict()
    if name in PLAIN and isinstance(args, tuple):
        return _Thing()
    if name in SETS and type(args) is tuple and all(isinstance(a, _List) and a.flat for a in args):
        return _Thing()
    raise pickle.UnpicklingError(f"{name or 'a value'} is called, which plain weights do not need")


def _check_view(stored, offset, shape, strides):
    """Refuse a tensor that has more values than its storage, or reaches beyond it.

    torch makes a storage larger where a tensor reaches beyond it. Strides of 0 make a terabyte
    of one number; nothing that is trained has them.
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
