"""Flickr8k's original files: a folder of photographs, their captions, three lists of names.

Whatever is irregular in them is left out and reported, with counts; nothing of it is an error as
long as every split keeps a picture. File names out of captions and lists are only looked up among
those of the image folder, never opened as paths.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pb_jax.data.captions import CAPTIONS_PER_IMAGE, Example, normalize_caption
from pb_jax.data.errors import DataError
from pb_jax.data.pictures import decode, in_threads
from pb_jax.data.progress import Progress

CAPTIONS = "Flickr8k.token.txt"
LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
"""The official lists, by split."""

_FOLDERS = ("flickr8k", "Flickr8k", "flickr_8k", ".")
_IMAGES = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "Flicker8k_Dataset/Flicker8k_Dataset",
    "Images",
    "images",
)
_TEXTS = ("Flickr8k_text", "Flickr8k_Text", ".")
_MOST_TEXT = 64 * 2**20
_MOST_IMAGE = 64 * 2**20
_MOST_CAPTION = 2_000  # characters; the longest published caption has 199
_CAPTION_LINE = re.compile(r"([^\t#]+)#(\d{1,9})[\t ]+(.*)")


class Files(NamedTuple):
    """Where the original files are.

    Attributes:
        images: the folder of the photographs.
        captions: the file of captions.
        lists: the three lists, by split.
    """

    images: Path
    captions: Path
    lists: Mapping[str, Path]


class Original(NamedTuple):
    """What the original files hold.

    Attributes:
        images: the folder of the photographs.
        splits: the usable examples, in the order of the lists.
        notes: a sentence, with counts, on each thing that was irregular.
    """

    images: Path
    splits: Mapping[str, tuple[Example, ...]]
    notes: tuple[str, ...]


def describe() -> str:
    """Say which files are needed, and where in a source folder DIR."""
    return (
        "DIR must hold, as the archives Flickr8k_Dataset.zip and Flickr8k_text.zip unpack\n"
        f"  flickr8k/{_IMAGES[0]}/*.jpg\n"
        f"  flickr8k/{_TEXTS[0]}/{CAPTIONS}, {', '.join(LISTS.values())}\n"
        "(the folder flickr8k itself may be left out)"
    )


def locate(source_dir: Path) -> Files:
    """Find the original files below a folder that a user named.

    Raises:
        DataError: some or all are missing; the message says which, and what could be there.
    """
    if not source_dir.is_dir():
        raise DataError(f"{source_dir}: is no folder; name one with flickr8k's files")
    names = (CAPTIONS, *LISTS.values())
    incomplete = ""
    for base in (source_dir / folder for folder in _FOLDERS):
        folders = [base / name for name in _IMAGES if (base / name).is_dir()]
        images = next((folder for folder in folders if _holds_pictures(folder)), None)
        texts = [base / name for name in _TEXTS]
        missing = {text: [name for name in names if not (text / name).is_file()] for text in texts}
        best = min(texts, key=lambda text: len(missing[text]))
        if images is not None and not missing[best]:
            return Files(
                images, best / CAPTIONS, {split: best / name for split, name in LISTS.items()}
            )
        if not incomplete and images is not None:
            incomplete = f"{base}: lacks {', '.join(missing[best])}"
        elif not incomplete and len(missing[best]) < len(names):
            lacking = [f"{_IMAGES[0]}/*.jpg", *missing[best]]
            incomplete = f"{base}: lacks {', '.join(lacking)}"
    raise DataError((incomplete or f"{source_dir}: holds no files of flickr8k") + "\n" + describe())


def read(files: Files, progress: Progress) -> Original:
    """Read captions and lists, decode every picture once to see that it can be, and put together.

    Raises:
        DataError: a text file cannot be read, or a split is left without a picture.
    """
    notes: list[str] = []
    captions = _read_captions(files.captions, notes)
    lists = _read_lists(files.lists, notes)
    with os.scandir(files.images) as entries:
        present = {entry.name for entry in entries if entry.is_file()}
    lost = captions.keys() - present
    count = sum(len(captions[name]) for name in lost)
    consequence = f"{count:,} caption{'s' * (count != 1)} left out"
    _note(notes, lost, "captioned name{s} without an image file", consequence)
    usable = {}
    for split, names in lists.items():
        file = files.lists[split].name
        found = [name for name in names if name in present]
        usable[split] = [name for name in found if name in captions]
        _note(notes, set(names) - present, f"name{{s}} in {file} without an image file", "left out")
        _note(
            notes,
            set(found) - captions.keys(),
            f"image{{s}} of {file} without a caption",
            "left out",
        )
    unlisted = present - set().union(*lists.values())
    _note(notes, unlisted, "file{s} in the image folder on none of the lists", "left out")
    digests = _check_pictures(files.images, usable, notes, progress)
    splits = {
        split: tuple(
            Example(name, digests[name], captions[name]) for name in names if name in digests
        )
        for split, names in usable.items()
    }
    counts = {ex.name: len(ex.captions) for part in splits.values() for ex in part}
    few = {name for name, count in counts.items() if count < CAPTIONS_PER_IMAGE}
    _note(notes, few, "image{s} with fewer than five captions", "some are repeated")
    many = {name for name, count in counts.items() if count > CAPTIONS_PER_IMAGE}
    _note(notes, many, "image{s} with more than five captions", "the first five are used")
    for split, part in splits.items():
        if not part:
            raise DataError(
                f"{files.lists[split]}: no image of it can be used; "
                + ("; ".join(notes) or "it is empty")
            )
    return Original(files.images, splits, tuple(notes))


def load_picture(folder: Path, example: Example) -> bytes:
    """The encoded picture, as it was when `read` saw it.

    Raises:
        DataError: the file has changed since.
    """
    content = _content(folder / example.name)
    if hashlib.sha256(content).hexdigest() != example.sha256:
        raise DataError(f"{folder / example.name}: changed while it was being read; try again")
    return content


def _read_captions(path: Path, notes: list[str]) -> dict[str, tuple[str, ...]]:
    """Captions by file name, in the order of their numbers."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    malformed, wordless = [], []
    for line_number, line in enumerate(_lines(path, notes), 1):
        if not line.strip():
            continue
        found = _CAPTION_LINE.fullmatch(line)
        if found is None or len(found[3]) > _MOST_CAPTION or not _plain(found[1].strip()):
            malformed.append(f"line {line_number}")
        elif not normalize_caption(found[3]):
            wordless.append(f"line {line_number}")
        else:
            numbered.setdefault(found[1].strip(), []).append((int(found[2]), found[3].strip()))
    _note(
        notes, malformed, f"line{{s}} of {path.name} without NAME#NUMBER, tab, caption", "left out"
    )
    _note(notes, wordless, f"caption{{s}} without a word in {path.name}", "left out")
    return {
        name: tuple(text for _, text in sorted(texts, key=lambda text: text[0]))
        for name, texts in numbered.items()
    }


def _read_lists(paths: Mapping[str, Path], notes: list[str]) -> dict[str, list[str]]:
    """The names on each list, once each, in order; no name is on two."""
    lists: dict[str, list[str]] = {}
    for split, path in paths.items():
        lines = [line.strip() for line in _lines(path, notes) if line.strip()]
        counts = Counter(line for line in lines if _plain(line))
        lists[split] = list(counts)
        odd = set(lines) - counts.keys()
        _note(notes, odd, f"line{{s}} of {path.name} with no file name", "left out")
        twice = {name for name, count in counts.items() if count > 1}
        _note(notes, twice, f"name{{s}} more than once in {path.name}", "taken once")
    counts = Counter(name for names in lists.values() for name in names)
    shared = {name for name, count in counts.items() if count > 1}
    _note(notes, shared, "name{s} on two lists", "kept in test, else validation, not in training")
    # What is judged by must not be trained on.
    taken: set[str] = set()
    for split in ("test", "validation", "train"):
        lists[split] = [name for name in lists[split] if name not in taken]
        taken.update(lists[split])
    return lists


def _check_pictures(
    folder: Path, usable: Mapping[str, Sequence[str]], notes: list[str], progress: Progress
) -> dict[str, str]:
    """SHA-256 of every picture that can be decoded; the others are noted, each by name."""
    names = [name for part in usable.values() for name in part]
    digests: dict[str, str] = {}
    bad = []
    with progress.bar("checking the pictures of flickr8k", total=len(names), unit="images") as bar:
        checks = in_threads(lambda name: _check_picture(folder / name), names)
        for name, (digest, reason) in zip(names, checks, strict=True):
            if reason:
                bad.append(f"{name} {reason}")
            else:
                digests[name] = digest
            bar.update()
    _note(notes, bad, "image file{s} that cannot be used", "left out", shown=20)
    return digests


def _check_picture(path: Path) -> tuple[str, str]:
    try:
        content = _content(path)
        decode(content, formats=("JPEG",))
    except DataError as error:
        return "", str(error)
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    return hashlib.sha256(content).hexdigest(), ""


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MOST_IMAGE + 1)
    if len(content) > _MOST_IMAGE:
        raise DataError(f"has more than {_MOST_IMAGE:,} bytes")
    return content


def _lines(path: Path, notes: list[str]) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_TEXT + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _MOST_TEXT:
        raise DataError(f"{path}: has more than {_MOST_TEXT:,} bytes; it is no file of flickr8k")
    text = content.decode("utf-8-sig", errors="replace")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    odd = [f"line {number}" for number, line in enumerate(lines, 1) if "\ufffd" in line]
    _note(notes, odd, f"line{{s}} of {path.name} not in UTF-8", "odd letters become spaces")
    return lines


def _plain(name: str) -> bool:
    """Whether it can only be a file's name, with no folder in it."""
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith((".jpg", ".jpeg")) for entry in entries)


def _note(
    notes: list[str], items: Collection[str], what: str, consequence: str, *, shown: int = 3
) -> None:
    """Add a sentence on irregular `items`: how many, what they are, the first, what follows."""
    if not items:
        return
    ordered = items if isinstance(items, list) else sorted(items)
    names = ", ".join(map(_printable, ordered[:shown])) + (", ..." if len(ordered) > shown else "")
    noun = what.format(s="" if len(ordered) == 1 else "s")
    notes.append(f"{len(ordered):,} {noun} ({names}): {consequence}")


def _printable(text: str) -> str:
    """What somebody else wrote, fit for a terminal: no control characters, and not too long."""
    short = text if len(text) <= 200 else text[:200] + "..."
    return short if short.isprintable() else ascii(short)
