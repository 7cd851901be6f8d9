"""What a pickle holds, found by reading its opcodes: nothing of it is imported or called, and no byte of memory is taken on its word.

`pickle` itself, with what it may import restricted, could still be made to fill the memory (an index of the memo, `bytearray`) or to
compute for ever (the hash of a tuple that holds itself twice, forty deep).
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST = 1_000_000  # opcodes
CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
BYTES = "_codecs.encode"
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(ValueError):
    """It is no pickle, or one of more than plain values."""


@dataclass
class Made:
    """What would be an object: by what it would be made, of what, and the state that it would be given."""

    by: str  # module.name
    of: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass
class _Machine:
    """The stack and the memo of a pickle, as the documentation of `pickletools` has them."""

    allowed: Callable[[str], bool]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # where each mark is, in the stack
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            count = TUPLES[name]
            stack[len(stack) - count :] = [tuple(self._last(count))]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._build(name)

    def _last(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError
        return self.stack[len(self.stack) - count :]

    def _name(self, argument: str | None) -> None:
        words = self._last(2) if argument is None else argument.split(" ", 1)
        if not all(isinstance(word, str) for word in words):
            raise Refused("names what is to be imported by no words")
        if argument is None:
            del self.stack[-2:]
        called = ".".join(words)
        if called != BYTES and not self.allowed(called):
            raise Refused(f"asks for {called}")
        self.stack.append(Made(called))

    def _build(self, name: str) -> None:
        """What takes the last one or two values, or those above the last mark."""
        stack = self.stack
        if name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("DICT", "LIST", "TUPLE", "APPENDS", "SETITEMS"):
            start = self.marks.pop()
            above = stack[start:]
            del stack[start:]
            if name in ("DICT", "LIST", "TUPLE"):
                stack.append({} if name == "DICT" else tuple(above) if name == "TUPLE" else [])
            if name != "TUPLE":
                _put(stack[-1], above)
        elif name in ("APPEND", "SETITEM"):
            above = self._last(1 if name == "APPEND" else 2)
            del stack[len(stack) - len(above) :]
            _put(stack[-1], above)
        elif name == "BINPERSID":
            stack.append(Made("persistent", stack.pop()))
        elif name in ("REDUCE", "BUILD"):
            made, value = self._last(2)
            if not isinstance(made, Made):
                raise Refused("calls what is no name")
            made.state = value if name == "BUILD" else made.state
            stack[-2:] = [_made(made.by, value) if name == "REDUCE" else made]
        else:
            raise Refused(f"has the opcode {name}")


def _made(by: str, of: Any) -> Any:
    """An object; or bytes, which Python 3 puts so into a pickle that Python 2 can read."""
    if by == BYTES and isinstance(of, tuple) and len(of) == 2 and isinstance(of[0], str) and of[1] == "latin1":
        return of[0].encode("latin1")
    return Made(by, of)


def _put(into: Any, values: list[Any]) -> None:
    """Into a list, or pairwise into a dict, or into what would be one; keys are text, or numbers: of nothing else the hash is taken."""
    into = into.items if isinstance(into, Made) else into
    if isinstance(into, list):
        into += values
        return
    if not isinstance(into, dict) or len(values) % 2:
        raise Refused("puts values where there is neither a list nor a dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes):
            raise Refused(f"has a {type(key).__name__} for a key")
        into[key] = value


def read(content: Any, allowed: Callable[[str], bool]) -> Any:
    """The value of the pickle in `content`, bytes or a file to read on from, with a `Made` for each object.

    Those that are `allowed` to be named, by module.name, are; it is another's to see what they would be.

    Raises:
        Refused: it is no pickle, or asks for something else.
    """
    machine = _Machine(allowed)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MOST:
                raise Refused(f"has more than {MOST:,} parts")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except Refused:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:  # UnicodeDecodeError and struct's among them
        raise Refused(f"is no pickle ({' '.join(str(error).split()) or type(error).__name__})") from None
