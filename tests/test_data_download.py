import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pb_jax.data import download
from pb_jax.data.progress import Progress
from pb_jax.data.specs import Download
from tests.data_server import Server, serving

CONTENT = bytes(range(256)) * 3000
FILE = Download("a.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
SILENT = Progress(enabled=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({FILE.name: CONTENT}) as server:
        yield server


def fetch(folder: Path, *base_urls: str) -> None:
    download.fetch([FILE], base_urls, folder, SILENT)


@pytest.mark.parametrize("how", ["right", "right/", "moved"])
def test_the_right_file_arrives(tmp_path, server, how):
    fetch(tmp_path, f"{server.url}/{how}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("wrong", f"its SHA-256 is [0-9a-f]{{64}}, the published one {FILE.sha256}"),
        ("cut", "ended after 384000 of the expected 768000 bytes"),
        ("long", "sends more than the expected 768000 bytes"),
        ("missing", "the server answers 404 Not Found"),
    ],
)
def test_anything_else_is_an_error_and_leaves_nothing(tmp_path, server, how, message):
    with pytest.raises(download.DownloadError, match=message) as caught:
        fetch(tmp_path, f"{server.url}/{how}")
    assert f"{server.url}/{how}/a.bin" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_next_address_is_tried_and_every_reason_given(tmp_path, server):
    bad = [f"{server.url}/missing", f"{server.url}/cut"]
    fetch(tmp_path, *bad, f"{server.url}/right")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    (tmp_path / "a.bin").unlink()
    with pytest.raises(download.DownloadError, match=r"(?s)missing/a.bin: .*404.*cut/a.bin: "):
        fetch(tmp_path, *bad)


def test_a_file_already_there_is_kept_if_it_is_right(tmp_path, server):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fetch(tmp_path, f"{server.url}/right")
    assert server.requests == []
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    fetch(tmp_path, f"{server.url}/right")
    assert server.requests == ["/right/a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_nobody_listens(tmp_path):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(download.DownloadError, match="Connection refused"):
            fetch(tmp_path, url)


def test_a_network_that_swallows_everything(tmp_path, monkeypatch):
    """Neither name lookup nor connection returns: both addresses together get the time allowed."""
    over = threading.Event()

    def hang(*args, **kwargs):
        over.wait(20)
        raise OSError("over")

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(download.DownloadError, match=r"no connection within 0\.5 s"):
        fetch(tmp_path, "http://one.invalid/", "https://two.invalid/")
    over.set()
    assert time.monotonic() - start < 10  # twenty without the limit
    assert not list(tmp_path.iterdir())


def test_a_server_that_falls_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(download.DownloadError, match="timed out"):
            fetch(tmp_path, url)


def test_only_http_addresses_are_opened(tmp_path):
    with pytest.raises(download.DownloadError, match="file:///etc: is no http or https address"):
        fetch(tmp_path, "file:///etc")


def test_an_unwritable_folder_is_no_fault_of_the_server(tmp_path, server):
    with pytest.raises(FileNotFoundError):
        fetch(tmp_path / "gone", f"{server.url}/right")
