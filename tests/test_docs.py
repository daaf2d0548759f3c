"""What README and docs/ say runs, runs; what they name, is there."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from unittest import mock

import matplotlib as mpl
import numpy as np
import pytest

import caption
import models.registry
import pb_jax
import study
import train
from pb_jax.data import specs
from pb_jax.reports import __main__ as reports
from pb_jax.study import parse_rules

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def blocks(page, language):
    """The fenced blocks of a page in this language; each with the line it begins in."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start(1)), match[1]


def run(page):
    """Run the Python of a page, a block after the other, as one program; returns what it prints."""
    printed, names = io.StringIO(), {"__name__": "__main__"}
    with contextlib.redirect_stdout(printed):
        for line, block in blocks(page, "python"):
            exec(compile("\n" * line + block, str(page), "exec"), names)
    return printed.getvalue()


def exported_weights():
    from safetensors.numpy import save_file

    save_file({"conv1.kernel": np.zeros((5, 5, 1, 8))}, "out.safetensors", {"epoch": "2"})


def weights_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.save({"features.0.weight": torch.zeros(2)}, "vgg19.pth")


def checkpoint_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.save({"net": {"features.0.weight": torch.zeros(2)}, "acc": 93.0}, "ckpt.pth")


# What a reader has at hand where a page begins.
AT_HAND = {
    "checkpoints": exported_weights,
    "captioner": weights_of_pytorch,
    "examples": checkpoint_of_pytorch,
}


SLOW = {"guide"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW))
        for page in PAGES
        if any(blocks(page, "python"))
    ],
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem in AT_HAND:
        AT_HAND[page.stem]()
    with mock.patch.dict(specs.DATASETS), mock.patch.dict(models.registry._NETWORKS):
        printed = run(page)
    if page.stem == "README":
        share, threshold = re.fullmatch(
            r"all .* ([\d.]+)% ([\d.]+)", printed.splitlines()[-1]
        ).groups()
        assert 10 < float(share) < 95
        assert float(threshold) > 0


def commands(page):
    """The commands of a page: those in blocks of shell, and `python ...` within lines."""
    text = page.read_text(encoding="utf-8")
    variables = {}
    for _, block in blocks(page, "sh"):
        for line in lines(block):
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[f"${assigned[1]}"] = assigned[2]
                continue
            for name, value in variables.items():
                line = line.replace(name, value)
            yield from parts(shlex.split(line, comments=True))
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for found in re.findall(r"`((?:python|pip|pytest) [^`]*)`", outside):
        yield from parts(shlex.split(found.replace("\n", " ").replace("...", "")))


def lines(block):
    """The lines of a shell script: continued by a backslash, or until a quotation is closed."""
    line = ""
    for piece in re.sub(r"\\\n\s*", " ", block).splitlines():
        line += piece
        with contextlib.suppress(ValueError):
            shlex.split(line, comments=True)
            yield line
            line = ""
    assert not line


def parts(words):
    """The commands between `&&`."""
    rest = words
    while "&&" in rest:
        yield rest[: rest.index("&&")]
        rest = rest[rest.index("&&") + 1 :]
    if rest:
        yield rest


def check(words):
    """Fail unless this command could be given."""
    while "=" in words[0]:  # the environment
        words = words[1:]
    program, *arguments = words
    if program == "python" and arguments[0] == "-m":
        check_module(*arguments[1:])
    elif program == "python" and arguments[0] != "-c":
        check_script(*arguments)
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(extra.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    elif program == "pytest" and "-m" in arguments:
        marks = [
            mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
        ]
        assert (
            re.sub(r"not |and |or ", "", arguments[arguments.index("-m") + 1]).split()[0] in marks
        )
    else:
        assert program in {"python", "pytest", "ruff", "pyright", "jupyter", "git", "cd"}, program


def check_script(script, *arguments):
    if not arguments or arguments == ("--help",):
        assert (ROOT / script).is_file()
    elif script == "caption.py":
        caption.parse([script, *arguments])
    elif script == "study.py":
        options, rest = study._options(list(arguments))
        parse_rules(options.rules)
        train.parse([script, *rest])
    else:
        assert script == "train.py"
        train.parse([script, *arguments])


def check_module(module, *arguments):
    if module in ("mkdocs", "build", "twine"):
        return
    found = importlib.util.find_spec(module)
    if found is not None and found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    assert found is not None, module
    if module.startswith("pb_jax") and arguments:
        if module == "pb_jax.reports" and arguments[0] not in reports.COMMANDS:
            arguments = ("page", *arguments)
        importlib.import_module(found.name)._commands().parser.parse_args(arguments)
        return
    # Programs that measure or train when they are imported, or read sys.argv.
    source = Path(found.origin or "").read_text(encoding="utf-8")
    for flag in arguments:
        assert not flag.startswith("-") or f'"{flag}"' in source, flag


@pytest.mark.filterwarnings(
    # ml_collections reads config files that way.
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        text = shlex.join(words).replace("configs/NAME", "configs/lenet5")
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                check(shlex.split(text))
            except (SystemExit, Exception) as error:
                pytest.fail(f"{text}: {error} {said.getvalue()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!\w+:)([^)\s#]+)", text):
        assert (page.parent / target).exists(), target
    for config in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / config.replace("NAME", "lenet5")).exists(), config


def test_every_config_public_name_and_page_is_in_the_documentation():
    of = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
    for config in ROOT.glob("configs/*_pb.py"):
        assert f"(../configs/{config.name})" in of["experiments"]
    for example in ROOT.glob("examples/*.*"):
        assert f"(../examples/{example.name})" in of["examples"]
    assert {f"::: pb_jax.{name}\n" for name in pb_jax.__all__} <= set(
        re.findall(r"::: pb_jax\.\w+\n", of["api"])
    )
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert re.search(rf"\b{page.name}$", site, re.MULTILINE), f"nav of mkdocs.yml: {page.name}"


def test_the_version_is_the_same_everywhere():
    version = PROJECT["project"]["version"]
    assert pb_jax.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_first_commands_are_those_of_a_fresh_machine():
    assert "pip install -e '.[train]' && python train.py --config configs/digits_pb.py" in README
    assert "pip install -e '.[test]' && pytest" in README


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_is_stored_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    with mpl.rc_context({"backend": "agg"}):
        notebook = json.loads((ROOT / "examples/method.ipynb").read_text(encoding="utf-8"))
        names = {}
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec("".join(cell["source"]), names)
            stored = "".join(text for output in cell["outputs"] for text in output.get("text", ()))
            assert_alike(printed.getvalue(), stored)
            drawn = any("image/png" in output.get("data", {}) for output in cell["outputs"])
            assert drawn == ("plt.xlabel" in "".join(cell["source"]))


def assert_alike(text, stored):
    """The same words, and nearly the same numbers."""
    number = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?"
    assert re.sub(number, "0", text).split() == re.sub(number, "0", stored).split()
    values = [
        [float(value.replace(",", "")) for value in re.findall(number, each)]
        for each in (text, stored)
    ]
    np.testing.assert_allclose(*values, rtol=0.1)
