"""Pieces of a page, in which text is only ever text: what is not `Markup` is escaped."""

import base64
import html
import re

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"img", "meta"})


class Markup(str):
    """Text that is HTML or SVG already; `element` and `join` make it, out of nothing else."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Anything as text of a page; what no page may hold becomes U+FFFD.

    Example:
        >>> text("<b> & co"), text(Markup("<b>"))
        ('&lt;b&gt; &amp; co', '<b>')
    """
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(content))))


def join(*pieces: object) -> Markup:
    """Pieces one after the other."""
    return Markup("".join(map(text, pieces)))


def breakable(name: object) -> Markup:
    """A long name, if it is no markup yet, with places where a line may end; numbers have none.

    Example:
        >>> breakable("freeze.start_epoch"), breakable("98.61 %")
        ('freeze.<wbr>start_<wbr>epoch', '98.61 %')
    """
    if isinstance(name, Markup):
        return name
    return Markup(re.sub(r"([_=/-]|(?<!\d)\.|\.(?!\d))(?=\w)", r"\1<wbr>", text(name)))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element; attributes that are None are left out, `_` stands for `-`.

    Example:
        >>> element("a", "x < y", href="#1", class_="c")
        '<a href="#1" class="c">x &lt; y</a>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"</{name}>"
    return Markup(f"<{name}{written}>{join(*content)}{end}")


def picture(content: bytes, kind: str) -> str:
    """A picture as the address of itself; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
