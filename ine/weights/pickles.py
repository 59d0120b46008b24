"""Follow a pickle with stand-ins for its values: nothing that it names is looked up or called.

One small machine for all pickles that `ine` reads. What a kind of pickle may contain is said by
its `Rules`; everything else is refused.
"""

import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8"),
    )
)
"""Instructions that push a number, text or bytes."""

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
COMMON = frozenset(
    (
        *("PROTO", "FRAME", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", *CONSTANTS),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE", "REDUCE", "BUILD", "GLOBAL"),
    )
)
"""Instructions that every kind of pickle may have."""


class Readable(Protocol):
    """What `pickletools.genops` reads from."""

    def read(self, count: int, /) -> bytes:
        """Return at most so many bytes."""

    def readline(self) -> bytes:
        """Return a line."""

    def tell(self) -> int:
        """Return the position."""


@dataclass(frozen=True)
class Name:
    """Stand-in for a class or function."""

    text: str


class Dict:
    """Stand-in for a dict of any kind."""


class List:
    """Stand-in for a list."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    @property
    def flat(self) -> bool:
        """Whether it contains neither a tuple nor a list."""
        return not any(isinstance(item, tuple | List) for item in self.items)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one kind of pickle may contain; each function raises for anything else."""

    instructions: frozenset[str]
    """Instructions in addition to `COMMON`."""

    most_steps: int
    """Largest number of instructions."""

    name: Callable[[str], Name]
    """"module.name" -> stand-in for the class or function."""

    call: Callable[[object, object, str], object]
    """(function, arguments, REDUCE or NEWOBJ) -> stand-in for the result."""

    build: Callable[[object, object], None]
    """(stand-in, state): set the state of an object."""

    load: Callable[[object], object] | None = None
    """Persistent id -> stand-in for what is stored outside of the pickle."""


def walk(file: Readable | bytes, rules: Rules) -> Any:
    """Return the stand-in of a pickle's value; a file is left at the pickle's end.

    Raises:
        pickle.UnpicklingError: It contains something that the rules do not allow.
        ValueError: It is damaged or too long.
        LookupError: It is damaged.
    """
    allowed, machine = COMMON | rules.instructions, _Machine(rules)
    for step, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
        if step > rules.most_steps:
            raise ValueError(f"its pickle has over {rules.most_steps} instructions")
        if opcode.name == "STOP":
            return machine.result()
        if opcode.name not in allowed:
            raise machine.refused(opcode.name, argument)
        ACTIONS[opcode.name](machine, argument)
    raise ValueError("its pickle is cut short")


class _Machine:
    """The stack, marks and memo of the pickle format."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise ValueError("its pickle does not end in one value")
        return self.stack[0]

    def refused(self, instruction: str, argument: Any) -> pickle.UnpicklingError:
        if instruction not in ("STACK_GLOBAL", "INST"):
            return pickle.UnpicklingError(f"instruction {instruction} is not one of plain data")
        # Only texts are shown: writing out a tuple that holds itself often takes forever.
        parts = [part if isinstance(part, str) else "?" for part in self.stack[-2:]]
        found = argument.replace(" ", ".", 1) if argument else ".".join(parts)
        return pickle.UnpicklingError(f"GLOBAL {found[:200]} is named by {instruction}")

    def nothing(self, _: Any) -> None:
        """Do nothing: how a pickle is framed does not matter."""

    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """Return what was pushed since the last mark, and take it off."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def put(self, number: Any) -> None:
        self.memo[int(number)] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, number: Any) -> None:
        self.stack.append(self.memo[int(number)])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("its pickle is damaged")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def tuple_to_mark(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, List):
            raise pickle.UnpicklingError("something is appended to what is no list")
        target.items += items

    def set_items(self, keys: list[Any]) -> None:
        # A tuple that holds tuples may take years to hash; no state dict has one for a key.
        if not isinstance(self.stack[-1], Dict) or any(isinstance(key, tuple) for key in keys):
            raise pickle.UnpicklingError("a dict has other keys than names and numbers")

    def set_item(self, _: Any) -> None:
        _, key = self.stack.pop(), self.stack.pop()
        self.set_items([key])

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        self.rules.build(self.stack[-1], state)

    def load(self, _: Any) -> None:
        if self.rules.load is None:
            raise pickle.UnpicklingError("something is stored outside of the pickle")
        self.stack.append(self.rules.load(self.stack.pop()))

    def name(self, argument: str) -> None:
        self.stack.append(self.rules.name(argument.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a class or function is named by something else than text")
        self.stack.append(self.rules.name(f"{module}.{attribute}"))

    def call(self, instruction: str) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.rules.call(self.stack[-1], arguments, instruction)


def _constant(value: object) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
    **dict.fromkeys(VALUES, _Machine.push),
    **{name: _constant(value) for name, value in CONSTANTS.items()},
    "EMPTY_DICT": lambda machine, _: machine.push(Dict()),
    "EMPTY_LIST": lambda machine, _: machine.push(List()),
    "MARK": _Machine.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_to_mark,
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()[::2]),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": lambda machine, _: machine.call("REDUCE"),
    "NEWOBJ": lambda machine, _: machine.call("NEWOBJ"),
}
"""Instruction -> what it does; an instruction that is not here is never allowed."""
