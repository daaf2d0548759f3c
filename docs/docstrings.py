"""Docstrings as the site reads them: every doctest is an example, also where nothing says so."""

import re
import textwrap
from typing import Any

from griffe import Extension, Object


class Doctests(Extension):
    """Turn `Example:` and a bare doctest into the section `Examples:`, which griffe knows."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for everything that has been read."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = with_examples(obj.docstring.value)


def with_examples(text: str) -> str:
    r"""The docstring with its doctest in a section.

    >>> with_examples("Double.\n\n>>> double(1)\n2")
    'Double.\n\nExamples:\n    >>> double(1)\n    2'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    bare = re.search(r"^>>> ", text, flags=re.MULTILINE)
    if bare is None:
        return text
    doctest = textwrap.indent(text[bare.start() :], "    ")
    return f"{text[: bare.start()]}Examples:\n{doctest}"
