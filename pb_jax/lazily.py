"""Packages whose names are imported with the first of them that is asked for.

jax takes a second to import. A program that begins with `import pb_jax` has said by then what is
wrong with its arguments, shown its help, or put a handler where Ctrl-C needs one.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def lazily(package: str, module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that offers what is in a module's `__all__`.

    Args:
        package: its name.
        module: of the package; imported when a name is asked for that is no module of the package.

    Example:
        >>> getattr_, dir_ = lazily("pb_jax", "pb_jax.api")
        >>> getattr_("errors").UserError.__name__, "kde_otsu" in dir_()
        ('UserError', True)
    """

    def get(name: str) -> Any:
        if name == "__all__":
            return importlib.import_module(module).__all__
        if not name.startswith("__"):
            if importlib.util.find_spec(f"{package}.{name}") is not None:
                return importlib.import_module(f"{package}.{name}")
            found = importlib.import_module(module)
            if name in found.__all__:
                value = getattr(found, name)
                setattr(sys.modules[package], name, value)  # the next time it is simply there
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted(importlib.import_module(module).__all__)

    return get, names
