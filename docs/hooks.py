"""What the site shows of the repository outside of docs/: README, changelog, whatever is linked to.

Pages link as they do in the repository (`../examples/optax_loop.py`), so that both can be read.
Here each such target becomes a part of the site: programs and notebooks as pages, others as files.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(\]\()(?!\w+:)([^)\s#]+)")
_PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files from outside of docs/ that something links to."""
    todo = [*_PLACES, *(f"docs/{file.src_uri}" for file in files if file.is_documentation_page())]
    done = set()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, place_of(path), content=_content(path)))
        todo += _targets(path, _text(path)).values()
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their targets are in the site."""
    del config, files
    place = page.file.src_uri
    targets = _targets(_path_of(place), markdown)

    def replaced(match: re.Match[str]) -> str:
        target = targets.get(match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(place_of(target), posixpath.dirname(place) or ".")

    return _LINK.sub(replaced, markdown)


def place_of(path: str) -> str:
    """Where in the site a file of the repository is.

    >>> place_of("docs/method.md"), place_of("README.md"), place_of("examples/optax_loop.py")
    ('method.md', 'index.md', 'files/examples/optax_loop.py.md')
    """
    if path in _PLACES:
        return _PLACES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" + (".md" if path.endswith((".py", ".ipynb")) else "")


def _path_of(place: str) -> str:
    """The inverse of `place_of`."""
    for path, known in _PLACES.items():
        if place == known:
            return path
    if not place.startswith("files/"):
        return f"docs/{place}"
    path = place.removeprefix("files/")
    return path.removesuffix(".md") if path.endswith((".py.md", ".ipynb.md")) else path


def _targets(path: str, text: str) -> dict[str, str]:
    """The links in the text of a page that mean files of the repository, and which."""
    folder = posixpath.dirname(path)
    links = {match[2] for match in _LINK.finditer(text)}
    found = {link: posixpath.normpath(posixpath.join(folder, link)) for link in links}
    return {link: target for link, target in found.items() if (ROOT / target).is_file()}


def _text(path: str) -> str:
    """What a page says, as Markdown; "" where it is no page with links."""
    content = "" if path.endswith(".py") else _content(path)
    return content if isinstance(content, str) else ""


def _content(path: str) -> str | bytes:
    """What the site shows of a file."""
    file = ROOT / path
    if file.suffix in (".md", ".json"):
        return file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return f"# {path}\n\n```python\n{file.read_text(encoding='utf-8')}```\n"
    if file.suffix == ".ipynb":
        return _notebook(json.loads(file.read_text(encoding="utf-8")))
    return file.read_bytes()


def _notebook(notebook: Any) -> str:
    """A notebook as Markdown, with its outputs: text and PNG pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{data['image/png'].strip()})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
