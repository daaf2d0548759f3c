import contextlib

import jax
import pytest

from benchmarks import freeze_step, growth, mask_time, processes, state_bytes, step_time
from benchmarks.gpu import kernels
from benchmarks.processes import EndedError, StepProcess, parted, ratio, take_turns
from benchmarks.rows import Rows, machine
from benchmarks.step_profile import instructions, kind_of
from benchmarks.torch_steps import torch_process
from pb_jax import program
from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json


def counting(start):
    """A step whose run takes a second longer at each turn."""
    seconds = iter(range(start, start + 100))

    def step(steps):
        return [float(next(seconds))] * steps

    return step


def looks(monkeypatch, *trips):
    """What the next looks at the cores find, in nanoseconds."""
    found = iter(trips)
    monkeypatch.setattr(processes, "round_trip_ns", lambda: float(next(found)))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("trips", "near", "far"),
    [
        ([100, 100, 100], [1, 2], []),
        ([100, 150, 151, 100, 100, 100], [1, 4, 5], [2, 3]),  # of turns 2 and 3 one end is far
        ([400, 400, 400], [1, 2], []),  # far all the time: nothing to compare with
        ([100, 900, 100, 900, 100, 900, 100], [1, 2, 3, 4, 5, 6], []),
    ],
)
def test_turns_are_parted_by_how_near_the_cores_are(monkeypatch, trips, near, far):
    looks(monkeypatch, *trips)
    repeats = 3 if len(near) == 3 else 2
    taken = take_turns({"a": counting(0), "b": counting(10)}, repeats, 1)
    of_near, of_far = parted(taken, taken)
    assert of_near == {"a": near, "b": [10 + turn for turn in near]}
    assert of_far == {"a": far, "b": [10 + turn for turn in far]}


def test_other_turns_tell_how_near_the_cores_can_be(monkeypatch):
    looks(monkeypatch, *[100] * 2, *[400] * 4, *[100] * 2)
    (first,) = take_turns({"a": counting(0)}, 1, 1)
    # Of three turns none is near: that of before was nearer.
    second = take_turns({"a": counting(10)}, 1, 1, [first])
    third = take_turns({"a": counting(20)}, 1, 1, [first, *second])
    assert len(second) == 3
    both = [*second, *third]
    assert parted(both, [first, *both]) == ({"a": [21]}, {"a": [11, 12, 13]})


def test_each_turn_begins_with_another_way(monkeypatch):
    looks(monkeypatch, *[100] * 4)
    order = []

    def called(way):
        return lambda steps: (order.append(way), [1.0] * steps)[1]

    taken = take_turns({way: called(way) for way in "abc"}, 3, 1)
    assert [[*turn.seconds] for turn in taken] == [["a", "b", "c"]] * 3
    warm, *first = (order[at] for at in (0, 3, 6, 9))
    assert warm == "a"
    assert sorted(first) == ["a", "b", "c"]


def test_a_step_of_another_process_is_timed():
    pytest.importorskip("torch")
    with torch_process("lenet5", 2) as step:
        seconds = step(3)
        assert step.known[0].keys() == {"torch", "torch_threads", "updates"}
        assert len(step.runs()) == 1
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert 1 < step.loss < 4  # ten classes


def test_a_process_that_fails_ends_the_benchmark():
    with pytest.raises(EndedError, match="the process of a step ended"):
        StepProcess("benchmarks.jax_steps", step="train", name="none", ways=["full"], frozen=0.8)


def test_a_ratio_is_the_median_of_the_turns_ratios():
    assert ratio([2.0, 30.0, 6.0], [1.0, 10.0, 3.0]) == 2.0


COLUMNS = ("network", "ms")


def test_rows_are_written_as_they_come(tmp_path):
    file = tmp_path / "rows.json"
    rows = Rows(file, COLUMNS, ["a", "b"])
    rows.add(["a", 1.0])
    assert read_json(file)["rows"] == [["a", 1.0]]
    rows.add(("b", 2.0), ("b", 3.0))
    assert read_json(file)["rows"] == [["a", 1.0], ["b", 2.0], ["b", 3.0]]
    Rows(file, COLUMNS, ["b", "c"]).add(["b", 4.0])  # what is not measured anew stays
    assert read_json(file)["rows"] == [["a", 1.0], ["b", 4.0]]
    Rows(file, COLUMNS).add(["c", 5.0])
    assert read_json(file) == {**machine(), "columns": [*COLUMNS], "rows": [["c", 5.0]]}


def test_rows_may_have_no_file():
    Rows(None, COLUMNS).add(["a", 1.0])


@pytest.mark.parametrize("content", ["{", "[]", '{"columns": ["other"]}'])
def test_rows_do_not_take_the_place_of_something_else(tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_text(content)
    with pytest.raises(UserError, match="holds something else"):
        Rows(file, COLUMNS, ["a"])
    with pytest.raises(UserError, match="holds something else"):
        Rows(file, COLUMNS)
    with pytest.raises(UserError, match="holds something else"):
        step_time.earlier(file)


def test_rows_of_two_machines_do_not_make_a_table(tmp_path):
    file = tmp_path / "rows.json"
    write_json(file, {**machine(), "jax": "0.0", "columns": [*COLUMNS], "rows": []})
    with pytest.raises(UserError, match=r"holds numbers of jax 0\.0: name another"):
        Rows(file, COLUMNS, ["a"])
    write_json(file, {"machine": {**machine(), "python": "2"}, "results": {}})
    with pytest.raises(UserError, match="holds numbers of python 2"):
        step_time.earlier(file)
    write_json(file, {"machine": machine(), "results": {"vgg19": {}}})
    assert step_time.earlier(file) == {"vgg19": {}}


@pytest.mark.parametrize(
    ("main", "argument", "said"),
    [
        (mask_time.main, "--models=lenet", "unknown network 'lenet'; did you mean 'lenet5'?"),
        (mask_time.main, "--rules=red", "unknown rule 'red'; did you mean 'read'?"),
        (state_bytes.main, "--optimizers=adm", "unknown optimizer 'adm'; did you mean 'adam'?"),
        (growth.main, "--frozen=0.8,most", "--frozen: invalid numbers value: '0.8,most'"),
        (freeze_step.main, "--frozen=1.5", "--frozen 1.5: shares from 0 to below 1, or kde_otsu"),
    ],
)
def test_arguments_of_benchmarks(capsys, monkeypatch, main, argument, said):
    monkeypatch.setattr("sys.argv", ["benchmark", argument])
    with contextlib.suppress(SystemExit):  # of argparse
        assert program.run(main) == 2
    assert said in capsys.readouterr().err


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("main", "arguments", "rows"),
    [
        (mask_time.main, "--models=lenet5 --rules=read --repeats=1", 1),
        slow(growth.main, "--sizes=1600 --frozen=0.5 --repeats=1", 4),
        slow(state_bytes.main, "--models=lenet5 --optimizers=sgd", 4),
    ],
)
def test_benchmarks_write_what_they_print(tmp_path, capsys, monkeypatch, main, arguments, rows):
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments.split(), f"--json={file}"])
    assert main() == 0
    assert len(read_json(file)["rows"]) == rows
    assert len(capsys.readouterr().out.splitlines()) == 1 + rows


LINE = '  %{name} = f32[8,8]{{1,0}} {operation}(%x), calls=%{calls}, metadata={{op_name="{path}"}}'


@pytest.mark.parametrize(
    ("operation", "calls", "path", "kind"),
    [
        ("custom-call", "none", "jit(train)/jvp()/convolution/conv", "forward"),
        ("custom-call", "none", "transpose(jvp())/image_gradient/conv", "images"),
        ("fusion", "dot_computation", "transpose(jvp())/kernel_gradient/dot", "kernels"),
        ("fusion", "fused_pad", "transpose(jvp())/kernel_gradient/pad", "moved"),
        ("dot", "none", "jit(train)/jvp()/dot_general", "products"),
        ("fusion", "fused", "jit(train)/jvp()/max", "rest"),
        ("copy", "none", "", "rest"),
        ("fusion", "fused", "jit(train)/mul", "update"),
        ("while", "none", "transpose(jvp())/kernel_gradient/while", None),
    ],
)
def test_kinds_of_a_steps_instructions(operation, calls, path, kind):
    line = LINE.format(name="one.1", operation=operation, calls=calls, path=path)
    assert kind_of(operation, path, line, convolves=True) == kind
    text = (
        line
        + "\n  // no instruction\n"
        + LINE.format(name="other", operation="dot", calls="none", path="/convolution/")
    )
    assert list(instructions(text)) == [("one.1", kind), ("other", "forward")]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="it is about having none")
def test_kernels_asks_for_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kernels"])
    assert program.run(kernels.main) == 2
    assert "profiles a GPU" in capsys.readouterr().err


def test_kernels_by_name_and_by_kind():
    events = [("add_1", 4.0), ("copy.7", 2.0), ("add_2", 4.0), ("add_1", 4.0), ("copy.7", 2.0)]
    by_name = kernels.totals(events, 2)
    assert by_name == {"add_1": (1.0, 4.0), "copy.7": (1.0, 2.0), "add_2": (0.5, 2.0)}
    assert kernels.by_kind(by_name) == {"add": (1.5, 6.0), "copy": (1.0, 2.0)}
