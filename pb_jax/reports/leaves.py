"""What the names of a network's leaves tell: kernels, biases, batch norm; layers and blocks."""

from collections.abc import Sequence

KERNELS: str = "kernels"
BIASES: str = "biases"
NORM: str = "batch norm"
OTHER: str = "other"
KINDS: tuple[str, ...] = (KERNELS, BIASES, NORM, OTHER)

_KERNEL_NAMES = frozenset({"kernel", "weight", "embedding"})


def module_of(name: str) -> str:
    """The module that a leaf belongs to: all but the last part of its name.

    Example:
        >>> module_of("layer1.0.conv1.kernel")
        'layer1.0.conv1'
    """
    return name.rpartition(".")[0] or name


def kinds_of(names: Sequence[str]) -> list[str]:
    """What each leaf is: a module with a leaf `scale` is a batch norm.

    Example:
        >>> kinds_of(["conv.kernel", "conv.bias", "bn.scale", "bn.bias", "temperature"])
        ['kernels', 'biases', 'batch norm', 'batch norm', 'other']
    """
    norms = {module_of(name) for name in names if name.rpartition(".")[2] == "scale"}
    kinds = []
    for name in names:
        last = name.rpartition(".")[2]
        if module_of(name) in norms:
            kinds.append(NORM)
        elif last in _KERNEL_NAMES:
            kinds.append(KERNELS)
        else:
            kinds.append(BIASES if last == "bias" else OTHER)
    return kinds


def layers(names: Sequence[str]) -> list[int]:
    """Indices of the leaves that make a layer: the kernels, or all leaves where there are none.

    Example:
        >>> layers(["conv.kernel", "conv.bias", "dense.kernel", "dense.bias"])
        [0, 2]
    """
    found = [i for i, kind in enumerate(kinds_of(names)) if kind == KERNELS]
    return found or list(range(len(names)))


def shown_layers(count: int) -> list[int]:
    """Which layers to show of `count`, from 1: the paper's four, or as many evenly spaced.

    Example:
        >>> shown_layers(17), shown_layers(5), shown_layers(2)
        ([3, 7, 10, 13], [1, 2, 4, 5], [1, 2])
    """
    if count >= 13:
        return [3, 7, 10, 13]
    shown = min(count, 4)
    return [1 + round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)]


def rows(names: Sequence[str], most: int) -> list[str]:
    """The row of each leaf in a list of modules, or of the blocks that they make up.

    Args:
        names: of the leaves.
        most: rows, where blocks are few enough: the names are cut to as many parts as keep to it.

    Returns:
        For each leaf the name of its row.

    Example:
        >>> rows(["a.0.conv.kernel", "a.0.conv.bias", "a.0.bn.scale", "b.kernel"], most=2)
        ['a.0', 'a.0', 'a.0', 'b']
    """
    modules = [module_of(name).split(".") for name in names]
    for depth in range(max(map(len, modules)), 0, -1):
        found = [".".join(parts[:depth]) for parts in modules]
        if len(set(found)) <= most or depth == 1:
            return found
    raise AssertionError("a name has at least one part")
