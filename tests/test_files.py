import pytest

from pb_jax.files import read_json, write_json


def test_what_was_written_is_read(tmp_path):
    content = {"a": [1, 2.5, None, "é\n"], "b": {}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer string"),
        (b"[1]", r"holds no object but '\[1\]'"),
        (b"null", "holds no object but 'None'"),
    ],
    ids=range(7),
)
def test_what_is_no_object_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")
