import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pb_jax import program
from pb_jax.errors import UserError
from tests.synthetic_run import write_run

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    ["train.py", "--config", "configs/digits_pb.py", "--workdir", "DIR"],
    ["study.py", "--config", "configs/digits_pb.py", "--rules", "none", "--workdir", "DIR"],
    ["caption.py", "--workdir", "DIR", "a.png"],
    ["-m", "pb_jax.reports", "DIR"],
    ["-m", "pb_jax.reports", "figures", "DIR"],
    ["-m", "pb_jax.study", "tables", "DIR"],
    ["-m", "pb_jax.checkpoints", "show", "DIR"],
    ["-m", "benchmarks.state_bytes"],
]


def start(arguments, folder, **environment):
    arguments = [part.replace("DIR", str(folder)) for part in arguments]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", PROGRAMS, ids=lambda arguments: " ".join(arguments[:3]))
def test_ctrl_c_while_jax_is_imported(tmp_path, arguments):
    (tmp_path / "jax.py").write_text("import os, time\nos.kill(os.getpid(), 2)\ntime.sleep(60)")
    write_run(tmp_path)
    done = start(arguments, tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode in (130, -2), done  # -2: of the signal itself
    assert b"Traceback" not in done.stderr
    assert b"interrupted" in done.stderr or b"stopped" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminals_that_know_few_letters(tmp_path, encoding):
    (tmp_path / "script.py").write_text(
        "from pb_jax import program\n"
        "from pb_jax.errors import UserError\n"
        "def main():\n"
        "    print('1 ± 2 ≤ α, Ω ' + 'file\\udcff')\n"
        "    raise UserError('a \\u2013 b')\n"
        "program.end(program.run(main))\n",
        encoding="utf-8",
    )
    done = start([str(tmp_path / "script.py")], tmp_path, PYTHONIOENCODING=encoding, PYTHONPATH=".")
    assert done.returncode == 2
    written = {
        "ascii": b"1 +/- 2 <= alpha, \\u03a9 file\xff\n",
        "latin-1": b"1 \xb1 2 <= alpha, \\u03a9 file\xff\n",
        "utf-8": "1 ± 2 ≤ α, Ω file".encode() + b"\xff\n",
    }
    assert done.stdout == written[encoding]
    assert done.stderr == (
        b"error: a - b\n" if encoding != "utf-8" else "error: a \u2013 b\n".encode()
    )


def test_errors_of_users(capsys):
    def fail():
        raise UserError("no such file; make one")

    assert program.run(fail) == 2
    assert capsys.readouterr().err == "error: no such file; make one\n"
    assert program.run(fail, debug=True) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("error: no such file; make one\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(capsys, number, status):
    assert program.run(lambda: signal.raise_signal(number), stopped="gone") == status
    assert capsys.readouterr().err == "gone\n"


def test_other_items_go_on(capsys):
    done = []

    def work(item):
        if item == 2:
            raise UserError("two is wrong")
        done.append(item)

    assert program.each([1, 2, 3], work) == 2
    assert done == [1, 3]
    assert capsys.readouterr().err == "error: two is wrong\n"
    assert program.each([1], work) == 0


def test_errors_fit_a_terminal(capsys):
    program.report(UserError("a" * 10_000 + "\x1b[2J\x00\n" + "b" * 1000))
    said = capsys.readouterr().err
    assert len(said) < 3100
    assert said.startswith("error: aaa")
    assert said.endswith("\\x1b[2J\\x00\n" + "b" * 1000 + "\n")


def test_a_reader_that_has_gone(tmp_path):
    script = "from pb_jax import program\nprogram.end(program.run(lambda: print('x\\n' * 10**6)))"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "variable", ["JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION"]
)
def test_an_environment_that_jax_does_not_take(tmp_path, variable):
    done = start(PROGRAMS[0], tmp_path, **{variable: "abc"})
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: JAX does not start with this environment: ")
    assert done.stderr.count(b"\n") == 1


def test_an_error_does_not_wait_for_threads(tmp_path):
    """Nor is anything lost of what has been said before it."""
    (tmp_path / "script.py").write_text(
        "import logging, threading, time\n"
        "from pb_jax import program\n"
        "from pb_jax.errors import UserError\n"
        "logging.basicConfig(filename='log.txt')\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    logging.warning('logged')\n"
        "    print('said', end='')\n"
        "    raise UserError('it failed')\n"
        "program.end(program.run(main))\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, b"said", b"error: it failed\n")
    assert "logged" in (tmp_path / "log.txt").read_text()


def test_what_is_asked_for_is_imported(tmp_path):
    script = (
        "import sys, pb_jax, pb_jax.data, pb_jax.errors, pb_jax.study\n"
        "from pb_jax import program\n"
        "assert 'jax' not in sys.modules\n"
        "assert 'none' in dir(pb_jax) and not hasattr(pb_jax, 'nothing')\n"
        "assert pb_jax.rules.none is pb_jax.none is vars(pb_jax)['none']\n"
        "from pb_jax import *\n"
        "quantile(0.5)\n"
        "from pb_jax.study import parse_rules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, check=True, timeout=120)
