"""A reader of pickles that runs nothing: own opcodes, names from a list, inert records; a leaf.

A pickle is a small program. This module interprets the few instructions that network files need
and knows no way to import or call what a file names. Long byte strings stay in the file.
"""

import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from solverbench.sources import Blob, Source, refuse

SHORT = 64  # byte strings up to this length are taken out of the file at once


@dataclass(frozen=True, slots=True)
class Name:
    """A global name that the list allows; a label, not the thing it names."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An object of a foreign class: its name and its attributes.

    Attributes:
        name: of the class.
        state: what the file stores in it.
        note: what else the reader wants to know, for example a hash of source text.
    """

    name: str
    state: dict[Any, Any] = field(default_factory=dict)
    note: str = ""


class Ordered(dict[Any, Any]):
    """An OrderedDict; attributes that a file gives it are dropped."""

    __slots__ = ()


Build = Callable[[Source, tuple[Any, ...]], Any]
Meaning = Build | Literal["record", "dict", "label"]  # called; made as NEWOBJ, twice; only named
Names = Mapping[tuple[str, str], Meaning]


@dataclass(frozen=True)
class Limits:
    """What a file may cost.

    Attributes:
        steps: instructions.
        text: bytes of strings and short byte strings in all.
        seconds: wall clock.
    """

    steps: int = 1_000_000
    text: int = 1 << 25
    seconds: float = 20.0


def ordered(source: Source, args: tuple[Any, ...]) -> Ordered:
    """``collections.OrderedDict()``; its items follow as instructions of their own."""
    if args:
        refuse("collections.OrderedDict with arguments")
    return Ordered()


BASICS: Names = {("collections", "OrderedDict"): ordered}


class Machine:
    """One pickle stream.

    Args:
        source: the file.
        names: global names that may occur, (module, name), and what they mean.
        start: first byte of the stream.
        end: where it must have ended; the end of the file by default.
        persistent: makes an object of a persistent id; none are allowed by default.
        limits: what it may cost.
    """

    def __init__(
        self,
        source: Source,
        names: Names,
        start: int = 0,
        end: int | None = None,
        persistent: Callable[[Any], Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.source, self.names, self.persistent = source, names, persistent
        self.position, self.end = start, source.size if end is None else end
        self.limits, self.steps, self.text = limits or Limits(), 0, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.deadline = time.monotonic() + self.limits.seconds

    def load(self) -> Any:
        """The value of the stream; ``position`` is behind it afterwards.

        Raises:
            SolverBenchError: for anything that the list of names or this reader does not know.
        """
        self.stack, self.marks, self.memo = [], [], {}
        while (code := self.take(1)) != b".":
            step = STEPS.get(code)
            if step is None:
                refuse(f"instruction {code!r} at byte {self.position - 1} is not used by networks")
            self.spend()
            step(self)
        return self.pop()

    def spend(self, num: int = 1) -> None:
        """Count instructions, or what takes as long as so many."""
        before, self.steps = self.steps, self.steps + num
        if self.steps > self.limits.steps:
            refuse(f"it has more than {self.limits.steps:,} instructions")
        if self.steps >> 10 > before >> 10 and time.monotonic() > self.deadline:
            refuse(f"reading it takes longer than {self.limits.seconds:g} seconds")

    def take(self, size: int) -> bytes:
        """The next bytes of the stream."""
        if size < 0 or self.position + size > self.end:
            refuse("it ends too early, so the file is cut or damaged")
        part = self.source.at(self.position, size)
        self.position += size
        return part

    def number(self, form: str) -> Any:
        """The next number, in the form of ``struct``."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def words(self, size: int) -> str:
        """The next ``size`` bytes as text."""
        self.charge(size)
        try:
            return str(self.take(size), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            refuse(f"text at byte {self.position - size} is not UTF-8")

    def line(self) -> str:
        """Text up to the next line feed."""
        letters = bytearray()
        while (letter := self.take(1)) != b"\n":
            letters += letter
            if len(letters) > 256:
                refuse(f"a name of more than 256 letters at byte {self.position}")
        return letters.decode("ascii", "replace")

    def raw(self, size: int) -> bytes | Blob:
        """The next ``size`` bytes, left in the file where they are many."""
        if size <= SHORT:
            self.charge(size)
            return self.take(size)
        if self.position + size > self.end:
            refuse("it ends too early, so the file is cut or damaged")
        self.position += size
        return Blob(self.source, self.position - size, size)

    def charge(self, size: int) -> None:
        """Count bytes that are kept."""
        self.text += size
        if self.text > self.limits.text:
            refuse(f"its texts take more than {self.limits.text:,} bytes")

    def pop(self) -> Any:
        """The top of the stack."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            refuse(f"the stack is empty at byte {self.position}")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The top of the stack, left there; it must be a ``kind``."""
        value = self.pop()
        self.stack.append(value)
        if not isinstance(value, kind):
            refuse(f"{_kind(value)} is filled like one of type {kind.__name__}")
        return value

    def since_mark(self) -> list[Any]:
        """All above the last mark, taken off the stack."""
        if not self.marks:
            refuse(f"a mark is missing at byte {self.position}")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def remember(self, index: int) -> None:
        """Keep the top of the stack for later."""
        self.memo[index] = self.top(object)

    def recall(self, index: int) -> None:
        """Put a kept value on the stack."""
        if index not in self.memo:
            refuse(f"it asks for object {index}, which it has not stored")
        self.push(self.memo[index])

    def named(self, module: Any, name: Any) -> None:
        """Put the label of an allowed name on the stack."""
        if type(module) is not str or type(name) is not str:
            refuse("a name that is not text")
        if (module, name) not in self.names:
            shown = f"{module}.{name}"[:120]
            refuse(f"the name {shown!a} is not among those that network files need")
        self.push(Name(module, name))

    def meaning(self, label: Any) -> Meaning:
        """What an allowed name stands for."""
        if type(label) is not Name:
            refuse(f"{_kind(label)} is called")
        return self.names[label.module, label.name]

    def call(self) -> None:
        """REDUCE: one of our own functions."""
        args, label = self.pop(), self.pop()
        meaning = self.meaning(label)
        if isinstance(meaning, str) or type(args) is not tuple:
            refuse(f"{label.module}.{label.name} is called")
        self.push(meaning(self.source, args))

    def make(self) -> None:
        """NEWOBJ: an empty record or dict."""
        args, label = self.pop(), self.pop()
        meaning = self.meaning(label)
        if meaning not in ("record", "dict") or type(args) is not tuple or args:
            refuse(f"{label.module}.{label.name} is made into an object")
        self.push({} if meaning == "dict" else Record(f"{label.module}.{label.name}"))

    def fill(self) -> None:
        """BUILD: attributes of a record; a tuple of them is kept as ``tuple``."""
        state, value = self.pop(), self.top(object)
        if type(value) is Ordered:
            return
        if type(value) is not Record or type(state) not in (dict, Ordered, tuple):
            refuse(f"{_kind(value)} gets attributes")
        added = {"tuple": state} if type(state) is tuple else state
        self.spend(len(added))  # a shared one may be large and be given often
        value.state.update(added)

    def items(self, values: list[Any]) -> None:
        """SETITEM(S): keys and values by turns into a dict."""
        target = self.top(dict)
        if len(values) % 2:
            refuse("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[plain(key)] = value

    def persist(self) -> None:
        """BINPERSID: an object by its id."""
        if self.persistent is None:
            refuse("it asks for an object outside the stream")
        self.push(self.persistent(self.pop()))


def plain(key: Any) -> Any:
    """A key whose hash is harmless: text, a number, a label."""
    if type(key) is int and abs(key) >= 1 << 63:
        refuse("a key of more than 64 bits")
    if key is not None and type(key) not in (str, int, bool, Name):
        refuse(f"{_kind(key)} is a key")
    return key


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def integer(data: bytes) -> int:
    """A whole number of any length, as pickles store it."""
    return int.from_bytes(data, "little", signed=True)


def _skip(size: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.take(size)

    return step


def _pop(m: Machine) -> None:
    m.pop()


def _tuple(size: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.push(tuple([m.pop() for _ in range(size)][::-1]))

    return step


def _value(make: Callable[[], Any]) -> Callable[[Machine], None]:
    return lambda m: m.push(make())


def _global(m: Machine) -> None:
    module = m.line()
    m.named(module, m.line())


def _stack_global(m: Machine) -> None:
    name = m.pop()
    m.named(m.pop(), name)


def _pair(m: Machine) -> None:
    value = m.pop()
    m.items([m.pop(), value])


def _append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _unmarked(then: Callable[[Machine, list[Any]], None]) -> Callable[[Machine], None]:
    return lambda m: then(m, m.since_mark())


STEPS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": _skip(1),  # protocol
    b"\x95": _skip(8),  # frame
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": _pop,
    b"1": _unmarked(lambda m, values: None),
    b"2": lambda m: m.push(m.top(object)),
    b"N": _value(lambda: None),
    b"\x88": _value(lambda: True),
    b"\x89": _value(lambda: False),
    b"}": _value(dict),
    b"]": _value(list),
    b")": _value(tuple),
    b"\x8f": _value(set),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"\x8a": lambda m: m.push(integer(m.take(m.number("<B")))),
    b"G": lambda m: m.push(m.number(">d")),
    b"C": lambda m: m.push(m.raw(m.number("<B"))),
    b"B": lambda m: m.push(m.raw(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.raw(m.number("<Q"))),
    b"\x8c": lambda m: m.push(m.words(m.number("<B"))),
    b"X": lambda m: m.push(m.words(m.number("<I"))),
    b"\x8d": lambda m: m.push(m.words(m.number("<Q"))),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": _unmarked(lambda m, values: m.push(tuple(values))),
    b"a": _append,
    b"e": _unmarked(lambda m, values: m.top(list).extend(values)),
    b"s": _pair,
    b"u": _unmarked(lambda m, values: m.items(values)),
    b"\x90": _unmarked(lambda m, values: m.top(set).update([plain(v) for v in values])),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": Machine.call,
    b"\x81": Machine.make,
    b"b": Machine.fill,
    b"Q": Machine.persist,
}
