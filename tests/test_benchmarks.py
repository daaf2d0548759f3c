import pytest

from benchmarks import torch_steps
from benchmarks.step_profile import instructions, kind_of
from benchmarks.torch_steps import ratio, turns


def counting(start):
    """A step whose run takes a second longer at each turn."""
    seconds = iter(range(start, start + 100))

    def step(steps):
        return [float(next(seconds))] * steps

    return step


@pytest.mark.parametrize(
    ("trips", "near", "far"),
    [
        ([100, 100, 100], [1, 2], []),
        ([100, 149, 150, 100, 100, 100], [1, 4, 5], [2, 3]),  # of turns 2 and 3 one end is far
        ([400, 400, 400], [1, 2], []),  # far all the time: nothing to compare with
        ([100, 900, 100, 900, 100, 900, 100], [1, 2, 3, 4, 5, 6], []),
    ],
)
def test_turns_are_parted_by_how_near_the_cores_are(monkeypatch, trips, near, far):
    found = iter(trips)
    monkeypatch.setattr(torch_steps, "round_trip_ns", lambda: float(next(found)))
    monkeypatch.setattr(torch_steps.time, "sleep", lambda seconds: None)
    repeats = 3 if len(near) == 3 else 2
    of_near, of_far = turns({"a": counting(0), "b": counting(10)}, repeats, 1)
    assert of_near == {"a": near, "b": [10 + turn for turn in near]}
    assert of_far == {"a": far, "b": [10 + turn for turn in far]}


def test_each_turn_begins_with_another_way(monkeypatch):
    monkeypatch.setattr(torch_steps, "round_trip_ns", lambda: 100.0)
    monkeypatch.setattr(torch_steps.time, "sleep", lambda seconds: None)
    order = []

    def called(way):
        return lambda steps: (order.append(way), [1.0] * steps)[1]

    turns({way: called(way) for way in "abc"}, 3, 1)
    warm, *first = (order[at] for at in (0, 3, 6, 9))
    assert warm == "a"
    assert sorted(first) == ["a", "b", "c"]


def test_a_ratio_is_the_median_of_the_turns_ratios():
    assert ratio([2.0, 30.0, 6.0], [1.0, 10.0, 3.0]) == 2.0


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
