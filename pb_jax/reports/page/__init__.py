"""One page about one run, or several beside one another: `python -m pb_jax.reports DIR...`.

A file of HTML that holds everything it shows, pictures and charts included: it asks for nothing
from the network, runs no script, and its policy forbids both. What it shows of configurations,
captions and names is text, whatever they hold.
"""

import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from pb_jax.errors import UserError
from pb_jax.files import replacing
from pb_jax.reports.page import captions, figures, tables
from pb_jax.reports.page.markup import Markup, breakable, element, join
from pb_jax.reports.run_folder import Mask, Run, read_run
from pb_jax.reports.style import number

_LONG_NUMBER = re.compile(r"(?<![\w.])\d+\.\d{5,}(?![\w.])")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(
    workdirs: Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str]
) -> Path:
    """Write the page.

    Args:
        workdirs: folders of runs, finished or not, by the name that each is to have.
        path: of the HTML file to be written; an existing one is replaced.

    Returns:
        `path`.

    Raises:
        UserError: a file of a run is missing or damaged, or `path` cannot be written.
    """
    folders = {name: Path(folder) for name, folder in workdirs.items()}
    page = _page({name: read_run(folder) for name, folder in folders.items()}, folders)
    path = Path(path)
    try:
        with replacing(path) as temporary:
            temporary.write_text(f"{page}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def names_of(folders: Iterable[Path]) -> list[str]:
    """What tells folders apart: of their paths what is neither their common start nor end.

    Numbers in them are as short as everywhere on the page, unless that makes two names the same.

    Example:
        >>> names_of([Path("runs/none/seed_0"), Path("runs/frozen=0.8257126265559118/seed_0")])
        ['none', 'frozen=0.8257']
        >>> names_of([Path("runs/digits_pb")])
        ['digits_pb']
    """
    whole = _distinguishing(folders)
    short = [_LONG_NUMBER.sub(lambda found: number(float(found[0])), name) for name in whole]
    return short if len(set(short)) == len(set(whole)) else whole


def _distinguishing(folders: Iterable[Path]) -> list[str]:
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) == 1:
        return [paths[0][-1]] * len(paths)
    while len({parts[0] for parts in paths}) == 1 and all(len(parts) > 1 for parts in paths):
        paths = [parts[1:] for parts in paths]
    while len({parts[-1] for parts in paths}) == 1 and all(len(parts) > 1 for parts in paths):
        paths = [parts[:-1] for parts in paths]
    return ["/".join(parts) for parts in paths]


def _page(runs: Mapping[str, Run], folders: Mapping[str, Path]) -> Markup:
    titles = list(dict.fromkeys(run.title for run in runs.values()))
    title = ", ".join(titles) + (f": {len(runs)} runs" if len(runs) > 1 else "")
    sections = {
        "Summary": tables.summary(runs),
        "Curves": figures.curves(runs),
        "Threshold": _thresholds(runs),
        "Frozen weights": _frozen(runs),
        "Captions": _captions(folders),
        "Configuration": _configurations(runs),
    }
    shown = {name: content for name, content in sections.items() if content}
    links = [element("a", name, href=f"#{_anchor(name)}") for name in shown]
    style = Markup(resources.files(__name__).joinpath("style.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    body = element(
        "body",
        element("h1", title),
        element("nav", *links),
        *(
            element("section", element("h2", name), content, id=_anchor(name))
            for name, content in shown.items()
        ),
    )
    return join(Markup("<!DOCTYPE html>"), element("html", head, body, lang="en"))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _thresholds(runs: Mapping[str, Run]) -> Markup:
    """The gradients of each run's first mask; of the others behind a click."""
    masked = {i: (name, run) for i, (name, run) in enumerate(runs.items()) if run.masks}
    pieces = [figures.threshold_key()] if masked else []
    for i, (name, run) in masked.items():
        first, *later = run.masks
        if len(runs) > 1:
            pieces.append(element("h3", tables.run_name(i, name)))
        pieces.append(figures.threshold(run, first))
        if later:
            head = element("summary", f"masks made later: {len(later)}")
            more = [figures.threshold(run, mask) for mask in later]
            pieces.append(element("details", head, *more))
    return join(*pieces)


def _frozen(runs: Mapping[str, Run]) -> Markup:
    """A table for each network, with the last mask of each run."""
    networks: dict[tuple[str, ...], dict[int, tuple[str, Mask]]] = {}
    for i, (name, run) in enumerate(runs.items()):
        if run.masks:
            mask = run.masks[-1]
            networks.setdefault(mask.names, {})[i] = name, mask
    if not networks:
        return Markup()
    note = "Layers from the input on; where they are many, blocks. Of several masks the last."
    pieces = [element("p", note)]
    for masks in networks.values():
        if len(masks) == 1 < len(runs):  # its columns are of kinds of leaves, and do not name it
            ((i, (name, _)),) = masks.items()
            pieces.append(element("h3", tables.run_name(i, name)))
        pieces.append(tables.frozen_by_layer(masks))
    return join(*pieces)


def _captions(folders: Mapping[str, Path]) -> Markup:
    """Test pictures with what each captioner wrote, and where it looked."""
    heads = {name: tables.run_name(i, name) for i, name in enumerate(folders)}
    texts = {heads[name]: captions.read_captions(folder) for name, folder in folders.items()}
    pictures: dict[tuple[str, bytes], dict[Markup, captions.Sample]] = {}
    for name, folder in folders.items():
        for sample in captions.read_samples(folder):
            same = pictures.setdefault((sample.name, sample.pixels.tobytes()), {})
            same[heads[name]] = sample
    pieces = [captions.attention(same, number) for number, same in enumerate(pictures.values())]
    if pieces:
        pieces.insert(0, element("p", "The lighter, the more it looked there for the word."))
    if written := {head: of_run for head, of_run in texts.items() if of_run}:
        head = element("summary", "captions of more test pictures")
        pieces.append(element("details", head, captions.listed(written)))
    return join(*pieces)


def _configurations(runs: Mapping[str, Run]) -> Markup:
    wholes = [
        element(
            "details",
            element("summary", "all keys of ", breakable(name)),
            tables.configuration(run),
        )
        for name, run in runs.items()
    ]
    return join(*([tables.differences(runs)] if len(runs) > 1 else []), *wholes)
