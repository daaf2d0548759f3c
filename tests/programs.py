"""What the text of a compiled program says about traffic between devices."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_COLLECTIVE = re.compile(
    r"= (?P<types>\(.*?\)|\S+) "
    r"(?P<name>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(?P<kind>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")


class Moved(NamedTuple):
    """A result of a collective operation.

    Attributes:
        operation: "all-reduce", say.
        kind: "f32", say.
        size: number of entries of the result, on each device.
    """

    operation: str
    kind: str
    size: int

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        bits = re.sub(r"\D", "", self.kind)
        return self.size * int(bits or 8) // 8  # pred is a byte


def collectives(compiled: Any) -> Iterator[Moved]:
    """All results of collective operations in a compiled program, as its text says.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returns.

    Yields:
        One for each array.
    """
    for operation in _COLLECTIVE.finditer(compiled.as_text()):
        for array in _ARRAY.finditer(operation["types"]):
            edges = [int(edge) for edge in array["shape"].split(",") if edge]
            yield Moved(operation["name"], array["kind"], math.prod(edges))


def reduced_bytes(compiled: Any) -> int:
    """Bytes that a program reduces over all devices."""
    return sum(moved.bytes for moved in collectives(compiled) if moved.operation == "all-reduce")
