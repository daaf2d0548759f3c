"""Damaged and malicious files out of whole ones, for `tests.fuzz`: the same seed, the same file."""

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

ESCAPED = "escaped"
"""The name of files that nothing may write; see `outside`."""
CANARY_MODULE = "pb_jax_canary"
"""A module that nothing may import."""
_DEEP = "a value that is nested deeply"
_LONG = "a number with many digits"


class Canary:
    """What runs a command where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Mutator:
    """Ways to change content.

    Args:
        rng: chooses.
        outside: a path outside of what a reader may write; it ends in `ESCAPED`.
    """

    def __init__(self, rng: random.Random, outside: str) -> None:
        self.rng, self.outside = rng, outside
        self._hostile = ("../" + ESCAPED, "../../" + ESCAPED, outside, f"a/../../{ESCAPED}")

    def any(self, content: bytes) -> bytes:
        """Change a file of any kind, more often than not in the way that its format asks for."""
        if self.rng.random() < 0.5:
            return self.octets(content)
        return self._of_format(content)(content)

    def _of_format(self, content: bytes) -> Callable[[bytes], bytes]:
        if content[:2] == b"\x1f\x8b":
            return self.gzipped
        if content[:2] == b"PK":
            return self.zipped
        if content[:6] == b"\x93NUMPY":
            return self.npy
        if content[:1] == b"\x80" and content[-1:] == b".":
            return self.pickled
        if content[:1] in b"{[" and content[:1]:
            return self.text_of_json
        if content[8:9] == b"{":
            return self.safetensors
        return self.octets

    def octets(self, content: bytes) -> bytes:
        """Flip, overwrite, insert, remove, repeat and cut, once or a few times."""
        data = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 1, 2, 4, 16))):
            place = self.rng.randrange(len(data) + 1)
            some = self.rng.choice((1, 1, 4, 32, 1000))
            kind = self.rng.randrange(8)
            if kind == 0 and data:
                data[place % len(data)] ^= 1 << self.rng.randrange(8)
            elif kind == 1:
                data[place : place + some] = self.rng.randbytes(some)
            elif kind == 2:
                data[place:place] = self.rng.randbytes(some)
            elif kind == 3:
                del data[place : place + some]
            elif kind == 4:
                data[place:place] = data[place : place + some] * self.rng.choice((1, 2, 50))
            elif kind == 5:
                del data[place:]
            elif kind == 6:
                number = self.rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**16, 10**6))
                data[place : place + 4] = struct.pack(self.rng.choice("<>") + "i", number)
            else:
                data[place : place + 8] = struct.pack("<q", self.rng.choice((-1, 2**62, 2**40, 0)))
        return bytes(data)

    def gzipped(self, content: bytes) -> bytes:
        """Change what was compressed, and compress it again; or something else follows it."""
        inner = gzip.decompress(content)
        if self.rng.random() < 0.1:
            return content + gzip.compress(self.rng.randbytes(100), mtime=0)
        is_tar = inner[257:262] == b"ustar"
        inner = self.tar(inner) if is_tar and self.rng.random() < 0.7 else self.octets(inner)
        return gzip.compress(inner, 1, mtime=0)

    def tar(self, content: bytes) -> bytes:
        """Change a member, its name or its kind, or add one that leads elsewhere."""
        members = []
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for info in archive:
                file = archive.extractfile(info) if info.isreg() else None
                members.append((info, b"" if file is None else file.read()))
        place = self.rng.randrange(len(members))
        info, inner = members[place]
        kind = self.rng.randrange(6)
        if kind == 0:
            inner = self.any(inner)
        elif kind == 1:
            info.name = self.rng.choice((*self._hostile, "", "x" * 300))
        elif kind == 2:
            info.type = self.rng.choice(
                (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"7", b"S")
            )
            info.linkname, inner = self.rng.choice(self._hostile), b""
        elif kind == 3:
            members.insert(place, members[self.rng.randrange(len(members))])
        elif kind == 4:
            del members[place]
            place = max(place - 1, 0)
            info, inner = members[place]
        else:
            name = self.rng.choice(self._hostile)
            members.insert(place, (tarfile.TarInfo(name), b"escaped"))
            info, inner = members[place]
        info.size = len(inner)
        members[place] = info, inner
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for one, data in members:
                archive.addfile(one, io.BytesIO(data))
        return buffer.getvalue()

    def zipped(self, content: bytes) -> bytes:
        """Change a member or its name, add one that leads elsewhere or runs something."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        place = self.rng.randrange(len(members))
        name, inner = members[place]
        kind = self.rng.randrange(6)
        if kind in (0, 1):
            members[place] = name, self.any(inner)
        elif kind == 2:
            members[place] = self.rng.choice((*self._hostile, "", name + "\n")), inner
        elif kind == 3:
            members[place] = name, self.objects()
        elif kind == 4:
            del members[place]
        else:
            members.append((self.rng.choice(self._hostile), b"escaped"))
        buffer = io.BytesIO()
        method = self.rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for one, data in members:
                archive.writestr(zipfile.ZipInfo(one, (2020, 1, 1, 0, 0, 0)), data, method)
        return buffer.getvalue()

    def npy(self, content: bytes) -> bytes:
        """Another dtype or shape in the header, or objects that run something."""
        if self.rng.random() < 0.3:
            return self.objects()
        size = int.from_bytes(content[8:10], "little")
        header, data = content[10 : 10 + size], content[10 + size :]
        found = header.decode("latin-1")
        shape = found.partition("'shape': ")[2].partition(")")[0] + ")"
        change = self.rng.choice(
            (
                (shape, "(10000000000000,)"),
                (shape, "(-1,)"),
                (shape, "()"),
                (shape, "(2, 3)"),
                (shape, "(" * 100 + ")" * 100),
                (shape, f"__import__('os').system('touch {self.outside}')"),
                ("False", "True"),
                ("'<f", "'>f"),
                ("'<f4'", "'|O'"),
                ("'<f8'", "'<U99999'"),
                ("'descr'", "'other'"),
            )
        )
        changed = found.replace(*change, 1).rstrip().encode("latin-1") + b"\n"
        return content[:8] + len(changed).to_bytes(2, "little") + changed + data

    def objects(self) -> bytes:
        """An array of objects, which numpy would unpickle."""
        buffer = io.BytesIO()
        np.save(buffer, np.array([Canary(self.outside)], object), allow_pickle=True)
        return buffer.getvalue()

    def pickle(self) -> bytes:
        """A pickle that runs something, of any protocol, or in an old way of writing."""
        if self.rng.random() < 0.3:
            return f"cos\nsystem\n(S'touch {self.outside}'\ntR.".encode()
        inside = Canary(self.outside)
        value = self.rng.choice((inside, [inside], {b"data": inside, b"labels": [1]}))
        return pickle.dumps(value, self.rng.randrange(pickle.HIGHEST_PROTOCOL + 1))

    def pickled(self, content: bytes) -> bytes:
        """A pickle that runs something, in front of the content, in it, behind it or alone."""
        call = f"cos\nsystem\n(S'touch {self.outside}'\ntR".encode()
        kind = self.rng.randrange(4)
        if kind == 0:
            return self.pickle()
        if kind == 1:
            return content[:2] + call + b"0" + content[2:]
        if kind == 2:
            return content[:-1] + b"0" + call + b"."
        place = self.rng.randrange(len(content))
        opcode = self.rng.choice((b"(", b"c", b"R", b"b", b"\x81", b"Q", b"i"))
        return content[:place] + opcode + content[place:]

    def safetensors(self, content: bytes) -> bytes:
        """Another header before the same numbers."""
        size = int.from_bytes(content[:8], "little")
        header = self.text_of_json(content[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + content[8 + size :]

    def text_of_json(self, content: bytes) -> bytes:
        """Put another value, a key more or one less somewhere into JSON."""
        lines = content.split(b"\n") if content.count(b"\n{") else [content]
        place = self.rng.randrange(len(lines))
        try:
            value = json.loads(lines[place])
        except ValueError:
            return self.octets(content)
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            value = self.value(value)
        text = json.dumps(value)
        text = text.replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000)
        text = text.replace(f'"{_LONG}"', self.rng.choice(("9" * 400, "9" * 5000, "1e999")))
        lines[place] = text.encode()
        return b"\n".join(lines)

    def value(self, value: Any) -> Any:
        """A value of JSON with something changed in it."""
        if not isinstance(value, dict | list) or not value or self.rng.random() < 0.05:
            return self.odd(value)
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = self.rng.choice(keys)
        kind = self.rng.randrange(10)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else []
        if kind == 1 and isinstance(value, dict):
            return {(self.odd_text() if k == key else k): v for k, v in value.items()}
        if kind == 2 and isinstance(value, list):
            return [*value, value[key]]
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[key] = self.value(value[key])
        return changed

    def odd(self, value: Any) -> Any:
        """Another value in the place of one."""
        if isinstance(value, bool | int | float) and self.rng.random() < 0.5:
            return self.rng.choice(
                (value + 1, -value, value * 1e9, value + 0.5, str(value), 0, 2**63, 1e308)
            )
        odd = (None, True, False, 0, -1, 1, 1.5, 1e-320, float("nan"), float("inf"), [], {}, [[]])
        more = ({"": None}, [value], {"a": value}, _DEEP, _LONG, self.odd_text())
        return self.rng.choice((*odd, *more))

    def odd_text(self) -> str:
        """Names that lead elsewhere, cannot be written, or are too long."""
        return self.rng.choice(
            (
                *self._hostile,
                *("", "\ud800", "\0", "\n", "name", "../..", "/", "." * 300, "x" * 10_000),
                *("__class__", f"{CANARY_MODULE}.Canary", "1", "None", "\x1b[2J"),
            )
        )
