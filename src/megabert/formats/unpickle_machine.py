"""A machine for the pickle language that can make plain data and placeholders, and nothing else.

It does not use Python's unpickler: that one calls what it is told to, sets attributes on what it made, and takes
memory by numbers in the file. Here no opcode reaches an object that is not ours, and memory is bounded by the length of
the pickle. Source: the opcodes as described in Python's `pickletools`, which also splits them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

from megabert.formats.bounds import MOST_STEPS, Budget
from megabert.formats.bounds import name as bounded_name
from megabert.formats.unpickle_globals import CALLS, Placeholder, key, resolve

LARGEST_PICKLE = 64 << 20
_LARGEST_MEMO = 1 << 32
_MARK = object()

Persistent = Callable[[Any], Any]


def run(file: IO[bytes], where: str, persistent: Persistent | None = None) -> tuple[Any, set[str]]:
    """Read one pickle; the file is left behind its end.

    Args:
        where: what is read, for error texts.
        persistent: what a persistent id stands for; None: there must be none.

    Returns:
        The value, and the names of the globals that became placeholders.

    Raises:
        ValueError: it is damaged, too large, or hostile.
    """
    machine = _Machine(where, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(_Limited(file)):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return machine.result(), machine.foreign
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise ValueError(f"the pickle uses {opcode.name}, which no checkpoint needs")
            machine.budget.spend()
            handler(machine, argument)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        text = " ".join(str(error)[:400].split())
        raise ValueError(
            text if text.startswith(where) else f"{where} is damaged: {text or type(error).__name__}"
        ) from None
    raise ValueError(f"{where} is damaged: the pickle does not end")


class _Limited:
    """A file that gives no more than a pickle may be long."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._left = LARGEST_PICKLE

    def _take(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"a pickle of more than {LARGEST_PICKLE >> 20} MiB")
        return data

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise ValueError(f"a value of {size:,} bytes is announced, more than a pickle may be long")
        return self._take(self._file.read(size))

    def readline(self) -> bytes:
        return self._take(self._file.readline(1 << 20))

    def tell(self) -> int:
        return LARGEST_PICKLE - self._left


def _copied(value: Any) -> int:
    """What a copy of a value costs, in values or blocks of 64 bytes: one object may be copied again and again."""
    if isinstance(value, str | bytes | bytearray):
        return len(value) >> 6
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


class _Machine:
    def __init__(self, where: str, persistent: Persistent | None):
        self.where = where
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.foreign: set[str] = set()
        self.budget = Budget(where, MOST_STEPS, "steps")

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise ValueError("the pickle leaves no single value")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is needed")
        return value

    def to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise ValueError("a mark is missing")

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value is needed")
        return self.stack[-1]

    def find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global without a name")
        return resolve(bounded_name(module, self.where), bounded_name(name, self.where), self.where)

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Placeholder) or function.arguments is not None:
            raise ValueError(f"a call of what is no function: {type(function).__name__}")
        if not isinstance(arguments, tuple):
            raise ValueError("a call without arguments")
        if function.name in CALLS:
            self.budget.spend(sum(map(_copied, arguments)))
            return CALLS[function.name](*arguments)
        if function.name in ("copyreg._reconstructor", "copy_reg._reconstructor"):
            function = arguments[0]
            if not isinstance(function, Placeholder):
                raise ValueError("a call of what is no class")
            arguments = ()
        self.foreign.add(function.name)
        return Placeholder(function.name, arguments)

    def build(self, state: Any) -> None:
        target = self.top()
        if not isinstance(target, Placeholder):
            # OrderedDict's attributes, a parameter's hooks: nothing that data needs.
            return
        if target.arguments is None:
            raise ValueError(f"an attempt to change {target.name} itself")
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.budget.spend(len(part))
                target.state.update(part)
            elif part is not None:
                target.state["state"] = state
                return

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Placeholder) and target.arguments is not None:
            target.items.extend(values)
        else:
            raise ValueError(f"a {type(target).__name__} is no list")

    def put(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise ValueError("a key without a value")
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, dict):
            for name, value in pairs:
                target[key(name)] = value
        elif isinstance(target, Placeholder) and target.arguments is not None:
            target.items.extend(pairs)
        else:
            raise ValueError(f"a {type(target).__name__} is no dictionary")

    def add(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise ValueError(f"a {type(target).__name__} is no set")
        target.update(key(value) for value in values)

    def load_persistent(self, identifier: Any) -> None:
        if self.persistent is None:
            raise ValueError("a reference to something outside the pickle")
        self.push(self.persistent(identifier))

    def pop_many(self, count: int) -> tuple[Any, ...]:
        values = [self.pop() for _ in range(count)]
        return tuple(reversed(values))

    def remember(self, index: int) -> None:
        if not 0 <= index < _LARGEST_MEMO:
            raise ValueError("an impossible place in the memo")
        self.memo[index] = self.top()


def _push_value(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.to_mark()


def _global(machine: _Machine, argument: Any) -> None:
    machine.push(machine.find(*str(argument).split(" ", 1)))


def _stack_global(machine: _Machine, _: Any) -> None:
    machine.push(machine.find(*machine.pop_many(2)))


def _reduce(machine: _Machine, _: Any) -> None:
    machine.push(machine.call(*machine.pop_many(2)))


def _newobj_ex(machine: _Machine, _: Any) -> None:
    function, arguments, keywords = machine.pop_many(3)
    made = machine.call(function, arguments)
    if isinstance(made, Placeholder) and isinstance(keywords, dict):
        made.state.update(keywords)
    machine.push(made)


def _obj(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.to_mark()
    machine.push(machine.call(function, tuple(arguments)))


def _inst(machine: _Machine, argument: Any) -> None:
    function = machine.find(*str(argument).split(" ", 1))
    machine.push(machine.call(function, tuple(machine.to_mark())))


def _dict(machine: _Machine, _: Any) -> None:
    values = machine.to_mark()
    machine.push({})
    machine.put(values)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(machine.pop_many(count))


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
         "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
         "BINBYTES8", "BYTEARRAY8"),
        _push_value,
    ),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.remember(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NONE": _constant(None), "NEWTRUE": _constant(True), "NEWFALSE": _constant(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": _constant(()), "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": _pop, "POP_MARK": _pop_mark,
    "DUP": lambda machine, _: machine.push(machine.top()),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "LIST": lambda machine, _: machine.push(machine.to_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(key(value) for value in machine.to_mark())),
    "DICT": _dict,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.put(list(machine.pop_many(2))),
    "SETITEMS": lambda machine, _: machine.put(machine.to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.to_mark()),
    "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "INST": _inst, "OBJ": _obj, "NEWOBJ_EX": _newobj_ex,
    "BUILD": lambda machine, _: machine.build(machine.pop()),
    "PERSID": lambda machine, name: machine.load_persistent(name),
    "BINPERSID": lambda machine, _: machine.load_persistent(machine.pop()),
}  # fmt: skip
