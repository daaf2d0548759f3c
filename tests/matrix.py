"""The built wheel in clean environments: oldest and newest jax, optax and flax, each extra's size.

    python -m tests.matrix                 everything: half an hour
    python -m tests.matrix --quick         what CI runs: the library, oldest and newest
    python -m tests.matrix newest-train    some of the environments
    python -m tests.matrix size-cuda13     what an extra installs, no tests; not in "everything"
    python -m tests.matrix newest --python python3.12    newer Pythons get newer versions of jax

Builds the sdist, from it the wheel, and for each environment a virtual environment with the wheel,
in which the tests that belong there and an example run without the sources. With the newest
library, pyright and mypy read `tests/typed_user.py` as they read a user's program. `--json FILE`
keeps the outcome.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pb_jax import program
from pb_jax.errors import UserError
from pb_jax.files import write_json

ROOT = Path(__file__).resolve().parents[1]
TESTED = ("jax", "optax", "numpy", "flax", "orbax-checkpoint")
LIBRARY = (
    *("transforms", "rules", "masks", "otsu", "magnitudes", "threshold", "granularity"),
    *("compaction", "package"),
)
QUICK = ("masks", "otsu")
EXAMPLE = "optax_loop.py"
TRAINING = ("training_metrics", "training_step", "training_checkpoints", "reports_page")


class Environment(NamedTuple):
    """A virtual environment.

    Attributes:
        extra: of the wheel; "" for the library alone.
        pins: requirements besides; those of the wheel hold too.
        tests: names of test files that are run in it; none: it is only installed.
    """

    extra: str
    pins: tuple[str, ...]
    tests: tuple[str, ...]


ENVIRONMENTS = {
    "oldest": Environment("", ("jax==0.9.0", "optax==0.2.8", "numpy==2.0.0"), LIBRARY),
    "newest": Environment("", (), LIBRARY),
    "oldest-train": Environment("train", ("jax==0.10.0", "flax==0.12.8", "optax==0.2.8"), TRAINING),
    "newest-train": Environment("train", (), TRAINING),
}
SIZES = {
    f"size-{extra}": Environment(extra, (), ())
    for extra in ("train", "cuda12", "cuda13", "tpu", "bench", "docs")
} | {"size-library": Environment("", (), ())}
_NEEDED = ("flax", "hypothesis", "pytest", "scikit-image", "scikit-learn", "scipy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 where an environment fails."""
    options = _parser().parse_args(arguments)
    return program.run(lambda: _run(options), debug=options.debug)


def _run(options: argparse.Namespace) -> int:
    names = options.names or [n for n in ENVIRONMENTS if not options.quick or "-" not in n]
    known = ENVIRONMENTS | SIZES
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"no environment {unknown[0]!r}; there are: {', '.join(known)}")
    rows: dict[str, Any] = {}
    with _folder(options.keep) as folder:
        wheel = build(folder)
        for name in names:
            begun = time.monotonic()
            rows[name] = try_out(
                folder, wheel, name, known[name], base=options.python, quick=options.quick
            )
            rows[name]["seconds"] = round(time.monotonic() - begun)
            versions = ", ".join(f"{k} {v}" for k, v in rows[name]["versions"].items())
            python = f"Python {rows[name]['python']}"
            print(f"{name}: {rows[name]['outcome']} ({python}, {versions})", flush=True)
    if options.json:
        write_json(options.json, {"wheel": wheel.name, "environments": rows})
        print(f"written: {options.json}")
    return 0 if all(row["passed"] for row in rows.values()) else 1


def build(folder: Path) -> Path:
    """Build the sdist and, from it, the wheel, in `folder`; returns the wheel."""
    _checked([sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)])
    (wheel,) = (folder / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    others = [name for name in names if not name.startswith(("pb_jax/", "pb_jax-"))]
    for name in ("pb_jax/py.typed", "pb_jax/reports/page/style.css"):
        if name not in names:
            others.append(f"not {name}")
    if others:
        raise UserError(f"the wheel must hold all of pb_jax and nothing else, but holds {others}")
    return wheel


def try_out(
    folder: Path, wheel: Path, name: str, environment: Environment, *, base: str, quick: bool
) -> dict[str, Any]:
    """Install the wheel into a new virtual environment of `base` and run the tests there."""
    place = folder / name
    python = str(place / "venv/bin/python")
    _checked([base, "-m", "venv", str(place / "venv")])
    extra = f"[{environment.extra}]" if environment.extra else ""
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _checked([*install, f"pb_jax{extra} @ {wheel.as_uri()}", *environment.pins])
    size = sum(file.stat().st_size for file in (place / "venv").rglob("*") if file.is_file())
    about = {"python": _python_version(python), "versions": _versions(python)}
    about["megabytes"] = round(size / 1e6)
    if not environment.tests:
        return {"passed": True, "outcome": "installed", **about}
    _checked([*install, *_NEEDED, *environment.pins])
    _checked([python, "-m", "pip", "check"])
    # Everything that tests need, and nothing that could be imported in the wheel's place.
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    if environment.extra:
        shutil.copytree(ROOT / "models", place / "models")
    shutil.copy(ROOT / "pyproject.toml", place)
    tests = QUICK if quick else environment.tests
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0"]
    done = subprocess.run(
        [*command, *(f"tests/test_{test}.py" for test in tests)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    outcome = done.stdout.strip().rpartition("\n")[2]
    passed = done.returncode == 0
    _checked([python, str(shutil.copy(ROOT / "examples" / EXAMPLE, place))])
    if not passed:
        print(done.stdout[-5000:], done.stderr[-5000:], file=sys.stderr)
    if name == "newest":
        types = check_types(place, python)
        passed, outcome = passed and not types, f"{outcome}; types: {types or 'fine'}"
    return {"passed": passed, "outcome": outcome, **about}


def check_types(place: Path, python: str) -> str:
    """What pyright and mypy find wrong with a user's program."""
    user = place / "user.py"
    shutil.copy(ROOT / "tests/typed_user.py", user)
    found = ""
    for command in (
        ["pyright", "--pythonpath", python, str(user)],
        ["mypy", "--strict", "--ignore-missing-imports", "--python-executable", python, str(user)],
    ):
        # optax has no type hints that a checker may use, so that mypy must do without.
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=place, capture_output=True, text=True, check=False
        )
        found += "" if done.returncode == 0 else done.stdout + done.stderr
    return found


def _versions(python: str) -> dict[str, str]:
    listed = _checked([python, "-m", "pip", "list", "--format=json"])
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listed)}
    return {name: found[name] for name in TESTED if name in found}


def _python_version(python: str) -> str:
    return _checked([python, "-c", "import platform; print(platform.python_version())"]).strip()


def _checked(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise UserError(f"this failed:\n  {' '.join(command)}\n{said}")
    return done.stdout


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"environments; default: {', '.join(ENVIRONMENTS)}"
    )
    parser.add_argument("--python", default=sys.executable, help="of the environments")
    parser.add_argument("--quick", action="store_true", help="fewer environments and tests")
    parser.add_argument("--keep", metavar="DIR", type=program.path, help="a new folder to keep")
    parser.add_argument("--json", metavar="FILE", type=program.path, help="write the outcome here")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return parser


if __name__ == "__main__":
    program.end(main())
