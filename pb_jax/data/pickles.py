"""A reader of pickled data that can build plain values and arrays and can run nothing.

Python's own unpickler imports and calls what the file names. This one interprets the opcodes that
plain values and numpy arrays need; every other opcode and every other name is refused.
"""

import pickletools
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_PUSHES = frozenset(
    [
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME"})
_MARK = object()

_RECONSTRUCT = {f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")}
_FROM_BUFFER = {f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")}
_ENCODE = "_codecs encode"  # how Python 3 writes bytes for Python 2
_NAMES = frozenset({*_RECONSTRUCT, *_FROM_BUFFER, _ENCODE, "numpy ndarray", "numpy dtype"})


class PickleError(ValueError):
    """The pickle is damaged, or asks for more than plain values and arrays."""


@dataclass
class _Name:
    """A global that the file refers to; it is never imported."""

    name: str


@dataclass
class _Built:
    """A call that the file asks for: kept as a description, never made."""

    name: str
    args: tuple
    state: Any = field(default=None)


def load(data: bytes) -> Any:
    """Read a pickle of arrays, None, booleans, numbers, text, bytes, lists, tuples and dicts.

    Args:
        data: the whole pickle, protocol 2 to 5.

    Returns:
        The value; an array in it becomes an opaque object that `byte_array` turns into numpy's.
        Python 2's byte strings come as str in Latin-1.

    Raises:
        PickleError: with the reason.

    Example:
        >>> import pickle
        >>> load(pickle.dumps({"labels": [3, 1]}))
        {'labels': [3, 1]}
        >>> load(pickle.dumps(print))
        Traceback (most recent call last):
        ...
        pb_jax.data.pickles.PickleError: it asks for builtins.print, which is no array or plain type
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pickletools warns of odd characters in a name
            return _interpret(data)
    except PickleError:
        raise
    except (
        Warning,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise PickleError(f"it is damaged ({error})") from error


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        position = len(stack) - 1
        while stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise PickleError("it is damaged (a mark is missing)")
        items = stack[position + 1 :]
        del stack[position:]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _PUSHES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_index(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_index(argument)])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else pop_to_mark()
            _top(stack, list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else pop_to_mark()
            _set_items(_top(stack, dict), items)
        elif name in _TUPLES:
            size = _TUPLES[name]
            items = tuple(stack[-size:])
            if len(items) < size:
                raise PickleError("it is damaged (a value is missing)")
            stack[-size:] = [items]
        elif name == "TUPLE":
            items = pop_to_mark()
            stack.append(tuple(items))
        elif name == "GLOBAL":
            stack.append(_global(str(argument)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_global(f"{module} {attribute}"))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_call(function, args))
        elif name == "BUILD":
            state = stack.pop()
            _top(stack, _Built).state = state
        elif name == "STOP":
            return stack.pop()
        elif name not in _IGNORED:
            raise PickleError(f"it uses the opcode {name}, which no array or plain type needs")
    raise PickleError("it is cut short")


def _index(argument: Any) -> int:
    return int(argument)


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise PickleError(f"it is damaged (expected {kind.__name__.strip('_')})")
    return stack[-1]


def _set_items(target: dict, items: list[Any]) -> None:
    if len(items) % 2:
        raise PickleError("it is damaged (a key without a value)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int):
            raise PickleError("it is damaged (a key that is neither text nor number)")
        target[key] = value


def _global(name: str) -> _Name:
    if name not in _NAMES:
        shown = ".".join(name.split(" "))[:100]  # of a damaged file it may be anything
        raise PickleError(f"it asks for {shown}, which is no array or plain type")
    return _Name(name)


def _call(function: Any, args: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(args, tuple):
        raise PickleError("it calls something that is not a name")
    if function.name == _ENCODE:
        text, encoding = args
        if encoding != "latin1" or not isinstance(text, str):
            raise PickleError(f"it encodes text as {encoding!r}, expected 'latin1'")
        return text.encode("latin-1")
    return _Built(function.name, args)


def byte_array(value: Any) -> np.ndarray:
    """Turn what `load` returned for a numpy array of unsigned bytes into the array itself.

    Args:
        value: a part of `load`'s result.

    Returns:
        A read-only uint8 array.

    Raises:
        PickleError: it is no C-ordered array of unsigned bytes, or its size does not fit its data.

    Example:
        >>> import pickle
        >>> byte_array(load(pickle.dumps(np.arange(3, dtype=np.uint8))))
        array([0, 1, 2], dtype=uint8)
    """
    try:
        if not isinstance(value, _Built):
            raise PickleError(f"found {type(value).__name__}, expected an array")
        if value.name in _FROM_BUFFER:
            data, dtype, shape, order = value.args
            in_rows = order == "C"
        elif value.name in _RECONSTRUCT:
            _, shape, dtype, in_fortran_order, data = value.state
            in_rows = not in_fortran_order
        else:
            raise PickleError("found a data type, expected an array")
        if not in_rows or dtype.args[0] != "u1":
            raise PickleError("found an array of another type, expected unsigned bytes in rows")
        raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        return np.frombuffer(raw, np.uint8).reshape(shape)
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise PickleError(f"its array is damaged ({error})") from error
