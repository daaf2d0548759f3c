import os
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pb_jax.data import pickles
from tests.data_files import python2_pickle

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(2, 5))
def test_plain_values_are_read_as_python_reads_them(value, protocol):
    assert pickles.load(pickle.dumps(value, protocol)) == value


@given(
    array=npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=3, max_side=9)),
    protocol=st.integers(2, 5),
)
def test_byte_arrays_are_read(array, protocol):
    result = pickles.byte_array(pickles.load(pickle.dumps(array, protocol)))
    np.testing.assert_array_equal(result, array, strict=True)


def test_python_2_batch():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    data = python2_pickle(pixels, [7, 300])
    assert pickle.loads(data, encoding="bytes")[b"labels"] == [7, 300]
    content = pickles.load(data)
    assert content["labels"] == [7, 300]
    np.testing.assert_array_equal(pickles.byte_array(content["data"]), pixels, strict=True)


class Runs:
    """Its pickle calls os.mkdir(path)."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_calls_something_runs_nothing(tmp_path, protocol):
    data = pickle.dumps({"data": Runs(str(tmp_path / "harm")), "labels": []}, protocol)
    with pytest.raises(pickles.PickleError):
        pickles.load(data)
    assert not list(tmp_path.iterdir())
    pickle.loads(data)  # it would have worked
    assert [path.name for path in tmp_path.iterdir()] == ["harm"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"\x80\x02cbuiltins\nexec\n.", "asks for builtins.exec"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"(S'true'\nios\nsystem\n.", "opcode"),
        (b"(cos\nsystem\nS'true'\no.", "asks for os.system"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02Pid\n.", "opcode PERSID"),
        (b"\x80\x04\x8c\x0anumpy.core\x8c\x07runtime\x93.", "asks for numpy.core.runtime"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "'zlib'"),
        (b"\x80\x02K\x01)R.", "calls something that is not a name"),
        (b"\x80\x02}K\x01K\x02b.", "damaged"),
        (b"\x80\x02](K\x01", "damaged"),
        (b"\x80\x02K\x01", "damaged"),
        (b"\x80\x02e.", "damaged"),
        (b"\x80\x02K\x01\x87.", "damaged"),
        (b"\x80\x02}(K\x01u.", "key without a value"),
        (b"\x80\x02}]K\x01s.", "neither text nor number"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_everything_else_is_refused(data, message):
    with pytest.raises(pickles.PickleError, match=message):
        pickles.load(data)


def test_odd_characters_in_a_name_give_an_error_and_no_warning():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(pickles.PickleError, match="damaged"):
            pickles.load(b"\x80\x02cnum\\cpy\nndarray\n.")
    assert shown == []


def test_the_message_stays_short_whatever_the_name_is():
    with pytest.raises(pickles.PickleError) as error:
        pickles.load(b"c" + b"a" * 10_000 + b"\nb\n.")
    assert len(str(error.value)) < 200


def test_a_huge_memo_index_costs_nothing():
    assert pickles.load(b"\x80\x02K\x07r\xff\xff\xff\xff.") == 7


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.arange(3), "expected unsigned bytes in rows"),
        (np.zeros((2, 3), np.uint8, order="F"), "expected unsigned bytes in rows"),
        (np.dtype("u1"), "found a data type"),
        ([1], "found list"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_other_arrays_are_refused(value, message, protocol):
    content = pickles.load(pickle.dumps(value, protocol))
    with pytest.raises(pickles.PickleError, match=message):
        pickles.byte_array(content)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), protocol=st.integers(2, 5))
def test_mutated_pickles_give_an_error_or_a_value(data, protocol):
    value = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2]}
    content = bytearray(pickle.dumps(value, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = pickles.load(bytes(content))
        array = pickles.byte_array(result[b"data"] if isinstance(result, dict) else result)
    except (pickles.PickleError, KeyError):
        return
    assert array.dtype == np.uint8
