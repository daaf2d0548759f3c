"""Damaged and malicious files, thousands of them, through every reader of files from outside.

    python -m tests.fuzz [--inputs 10000] [--seed 0] [--only READER ...] [--out results/fuzz.json]

Each input is a folder of whole files (`tests.outside_files`), one or a few of them changed
(`tests.mutations`): the same seed makes the same inputs, but for checkpoints, whose files have
random names. A reader may read what it finds or raise a `UserError` of one to a few lines.
Everything else is a failure:

- any other error, and the end of the process: a crash;
- more than 20 seconds of processor time, or ten minutes: a hang;
- an address space that has grown by 6 GiB, which is a MemoryError;
- Python's own unpickler looking for a name, a command started, a module imported by its name in a
  file, a connection opened: code that was run;
- a file written, moved or removed outside of the folder.

The last two are seen by an audit hook, and by what lies beside the folder afterwards. A folder that
made a reader fail is kept, and `--only READER --first NUMBER --inputs 1` makes it again.
"""

import argparse
import collections
import functools
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pb_jax.errors import UserError
from pb_jax.files import write_json
from pb_jax.program import message
from pb_jax.training import metrics
from tests import forked
from tests.mutations import CANARY_MODULE, ESCAPED, Mutator
from tests.outside_files import READERS, Reader

ROOT = Path(__file__).parents[1]
SECONDS, WALL_SECONDS, MEMORY = 20, 600, 6 * 2**30
_LINES, _LENGTH = 40, 4000  # of a message at most
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
)
_CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.bind")
_CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
)


class Watch:
    """What the reader of an input does that it must not; there is one in a process."""

    def __init__(self, allowed: Path) -> None:
        self._allowed = os.path.realpath(allowed)
        self._active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def __enter__(self) -> "Watch":
        self.seen.clear()
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event in _RUNS or event in _CONNECTS:
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "import" and str(args[0]).startswith(CANARY_MODULE):
            self.seen.append(f"import {args[0]}")
        elif event == "open":
            if isinstance(args[0], str | bytes) and (args[2] or 0) & _WRITES:
                self._check(event, args[0])
        elif event in _CHANGES:
            for path in args[: 2 if event in ("os.rename", "os.link") else 1]:
                # A name relative to an open folder is of shutil.rmtree, which follows no link.
                if not isinstance(path, int) and args[-1] in (-1, None, args[0]):
                    self._check(event, path)

    def _check(self, event: str, path: Any) -> None:
        real = os.path.realpath(os.fsdecode(path))
        if real != os.devnull and os.path.commonpath([real, self._allowed]) != self._allowed:
            self.seen.append(f"{event} {real}")


class Child:
    """The process that reads: inputs of one reader, one after the other."""

    def __init__(self, name: str, seed: int, sandbox: Path) -> None:
        self.name, self.reader, self.seed = name, READERS[name], seed
        self.sandbox, self.template = sandbox, sandbox / "template"
        self.folder = sandbox / "work" / "in"
        self.outside = sandbox / ESCAPED

    def work(self, numbers: range, say: Callable[[dict[str, Any]], None]) -> None:
        """Read inputs; says when it begins one, and what became of it."""
        warnings.simplefilter("ignore")
        os.chdir(ROOT)
        sys.dont_write_bytecode = True
        shutil.rmtree(self.template, ignore_errors=True)
        self.template.mkdir(parents=True)
        self.reader.write(self.template)
        self._fresh()
        changed = self._files()[:1]
        self.reader.read(self.folder, changed)  # whole files must be read; imports what is needed
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        watch = Watch(self.folder)
        for number in numbers:
            say({"begun": number})
            say({"number": number, **self._one(number, watch)})

    def _one(self, number: int, watch: Watch) -> dict[str, Any]:
        self._fresh()
        rng = random.Random(f"{self.seed} {self.name} {number}")
        changed = self._change(rng)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        failure = ""
        outcome = "read"
        try:
            with watch:
                self.reader.read(self.folder, changed)
        except UserError as error:
            outcome = "refused"
            text = message(error)
            if not text.strip() or len(text) > _LENGTH or text.count("\n") > _LINES:
                failure = f"an unclear message: {text[:500]!r}"
        except BaseException as error:
            outcome = "failed"
            shown = traceback.format_exception(error)
            failure = "".join(shown[:1] + shown[-3:])[-2500:]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if watch.seen:
            failure += f"\ndone while reading: {watch.seen[:5]}"
        beside = {path.name for path in (*self.sandbox.iterdir(), *self.folder.parent.iterdir())}
        if beside - {"template", "work", "in", "path"}:
            failure += f"\nbeside the folder: {beside}"
            self.outside.unlink(missing_ok=True)
            (self.folder.parent / ESCAPED).unlink(missing_ok=True)
        if failure:
            keep(self.name, number, self.folder)
        return {"outcome": "failed" if failure else outcome, "failure": failure}

    def _fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder, symlinks=True)

    def _files(self) -> list[Path]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [p for p in found if self.reader.changes(str(p.relative_to(self.folder)))]

    def _change(self, rng: random.Random) -> list[Path]:
        mutator = Mutator(rng, str(self.outside))
        files = self._files()
        chosen = rng.sample(files, min(len(files), rng.choice((1, 1, 1, 1, 2))))
        for path in chosen:
            if rng.random() < 0.01:
                path.unlink()
            elif rng.random() < 0.01:
                path.unlink()
                path.mkdir()
            elif self.reader.mutate is not None and rng.random() < 0.7:
                path.write_bytes(self.reader.mutate(path.read_bytes(), mutator))
            else:
                path.write_bytes(mutator.any(path.read_bytes()))
        return chosen


def keep(name: str, number: int, folder: Path) -> None:
    """Keep a folder that made a reader fail."""
    kept = folder.parents[2] / "failed" / f"{name}_{number}"
    shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)


def outcomes(name: str, numbers: range, seed: int, sandbox: Path) -> Iterator[dict[str, Any]]:
    """What became of each input; a process that ends, or hangs, is replaced."""
    begun = numbers.start - 1
    ahead = numbers
    while ahead:
        reading, writing = os.pipe()
        process = forked.start(functools.partial(_read, Child(name, seed, sandbox), ahead, writing))
        os.close(writing)
        over = False
        with os.fdopen(reading) as lines:
            while True:
                ready, _, _ = select.select([lines], [], [], WALL_SECONDS)
                line = lines.readline() if ready else ""
                if not line:
                    over = bool(ready)
                    break
                said = json.loads(line)
                begun = said.get("begun", begun)
                if "outcome" in said:
                    yield said
                    ahead = range(said["number"] + 1, numbers.stop)
        if not over:
            os.kill(process, signal.SIGKILL)
        status = forked.status_of(process)
        if ahead:
            if begun < ahead.start:
                raise SystemExit(f"{name}: cannot read whole files: see {sandbox}.log")
            why = "hang" if not over or status == -signal.SIGPROF else f"crash, status {status}"
            keep(name, begun, sandbox / "work" / "in")
            yield {"number": begun, "outcome": "failed", "failure": why}
            ahead = range(begun + 1, numbers.stop)


def _read(child: Child, numbers: range, writing: int) -> None:
    forked.output_to(f"{child.sandbox}.log")
    with os.fdopen(writing, "w", buffering=1) as pipe:
        child.work(numbers, lambda said: print(json.dumps(said), file=pipe))


def shares(inputs: int, readers: Mapping[str, Reader]) -> dict[str, int]:
    """How many inputs each reader gets: by weight, together as many as are asked for."""
    total = sum(reader.weight for reader in readers.values())
    counts = {name: inputs * reader.weight // total for name, reader in readers.items()}
    first = next(iter(counts))
    counts[first] += inputs - sum(counts.values())
    return counts


def run(
    inputs: int,
    seed: int = 0,
    only: list[str] | None = None,
    first: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Try inputs; returns what `results/fuzz.json` holds."""
    began = time.monotonic()
    chosen = {name: READERS[name] for name in only or READERS}
    counted: dict[str, dict[str, int]] = {}
    failures = []
    base = Path(tempfile.mkdtemp(prefix="pb_jax_fuzz_"))
    (base / "path").mkdir()
    escape = f"import os\nos.system('touch {base / ESCAPED}')\n"
    (base / "path" / f"{CANARY_MODULE}.py").write_text(escape)
    sys.path.insert(0, str(base / "path"))
    for name, count in shares(inputs, chosen).items():
        sandbox = base / name
        (sandbox / "work").mkdir(parents=True)
        counts: collections.Counter[str] = collections.Counter()
        for found in outcomes(name, range(first, first + count), seed, sandbox):
            counts[found["outcome"]] += 1
            if found["outcome"] == "failed":
                failures.append({"reader": name, **found})
                say(f"FAILED {name} {found['number']}: {found['failure']}")
        counted[name] = {"inputs": count, "read": 0, "refused": 0, "failed": 0, **counts}
        say(f"{name}: {counted[name]}, {time.monotonic() - began:.0f} s")
        shutil.rmtree(sandbox)
    if failures or (base / ESCAPED).exists():
        say(f"left for inspection: {base}")
    else:
        shutil.rmtree(base)
    asked = "" if only is None else f" --only {' '.join(only)}"
    return {
        "command": f"python -m tests.fuzz --inputs {inputs} --seed {seed}{asked}",
        "date": date.today().isoformat(),
        "hardware": metrics.hardware(),
        "versions": metrics.versions(),
        "inputs": sum(counts["inputs"] for counts in counted.values()),
        "read": sum(counts["read"] for counts in counted.values()),
        "refused": sum(counts["refused"] for counts in counted.values()),
        "failed": len(failures),
        "readers": counted,
        "seconds": round(time.monotonic() - began),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=READERS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = run(options.inputs, options.seed, options.only, options.first)
    if options.out is not None:
        write_json(options.out, result)
    print(json.dumps(result, indent=2))
    return bool(result["failed"])


if __name__ == "__main__":
    sys.exit(main())
