"""What the text of a compiled program says about traffic between devices."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_COLLECTIVE = re.compile(
    r"= (?P<types>\(.*?\)|\S+) "
    r"(?P<name>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d*)\[(?P<shape>[\d,]*)\]")


class Moved(NamedTuple):
    """A result of a collective operation.

    Attributes:
        operation: "all-reduce", say.
        shape: of the result, on each device.
        bytes: of the result.
    """

    operation: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def size(self) -> int:
        """Number of entries."""
        size = 1
        for edge in self.shape:
            size *= edge
        return size


def collectives(compiled: Any) -> Iterator[Moved]:
    """All results of collective operations in a compiled program, as its text says.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returns.

    Yields:
        One for each array.
    """
    for line in compiled.as_text().splitlines():
        found = _COLLECTIVE.search(line)
        for array in _ARRAY.finditer(found["types"]) if found else ():
            shape = tuple(int(edge) for edge in array["shape"].split(",") if edge)
            # pred is a byte; of several results each counts.
            moved = Moved(found["name"] if found else "", shape, 0)
            yield moved._replace(bytes=moved.size * int(array["bits"] or 8) // 8)


def reduced_bytes(compiled: Any) -> int:
    """Bytes that a program reduces over all devices."""
    return sum(moved.bytes for moved in collectives(compiled) if moved.operation == "all-reduce")
