"""Fetching published files: checked against their checksum, and quick to say that it cannot."""

import hashlib
import http.client
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import Download
from pb_jax.files import replacing

CONNECT_SECONDS = 3.0
"""How long all addresses together may take to answer; without a network nobody waits longer."""

READ_SECONDS = 30.0
"""How long an established connection may stay silent."""

_CHUNK = 1 << 18


class DownloadError(DataError):
    """A file could not be fetched from any of its addresses; the message gives each reason."""


def fetch(
    files: Sequence[Download], base_urls: Sequence[str], folder: Path, progress: Progress
) -> None:
    """Bring `files` into `folder`; those already there with the right checksum are kept.

    Args:
        files: what to fetch.
        base_urls: http(s) folders that hold them all, tried in this order for every file.
        folder: an existing folder.
        progress: where to show it.

    Raises:
        DownloadError: no address gave the right file. No part of it is left.
        OSError: `folder` cannot be written.
    """
    for base_url in base_urls:
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise DownloadError(f"{base_url}: is no http or https address")
    for file in files:
        target = folder / file.name
        if not (target.is_file() and _sha256(target) == file.sha256):
            _fetch_one(file, base_urls, target, progress)


def _fetch_one(file: Download, base_urls: Sequence[str], target: Path, progress: Progress) -> None:
    reasons = []
    deadline = time.monotonic() + CONNECT_SECONDS
    for index, base_url in enumerate(base_urls):
        url = f"{base_url.rstrip('/')}/{file.name}"
        share = (deadline - time.monotonic()) / (len(base_urls) - index)
        try:
            _transfer(url, file, target, max(share, 0.5), progress)
        except _TransferError as error:
            reasons.append(f"  {url}: {error}")
        else:
            return
    raise DownloadError(f"{file.name} could not be downloaded:\n" + "\n".join(reasons))


class _TransferError(Exception):
    """Why one address did not give the file."""


def _transfer(
    url: str, file: Download, target: Path, connect_seconds: float, progress: Progress
) -> None:
    digest = hashlib.sha256()
    received = 0
    with _network_errors():
        response = _opener(connect_seconds).open(url)
    with (
        response,
        replacing(target) as temporary,
        temporary.open("wb") as output,
        progress.bar(f"downloading {url}", total=file.size, unit="B") as bar,
    ):
        while True:
            with _network_errors():
                chunk = response.read(_CHUNK)
            if not chunk:
                break
            received += len(chunk)
            if received > file.size:
                raise _TransferError(f"sends more than the expected {file.size} bytes")
            digest.update(chunk)
            output.write(chunk)
            bar.update(len(chunk))
        if received < file.size:
            raise _TransferError(
                f"the connection ended after {received} of the expected {file.size} bytes"
            )
        if digest.hexdigest() != file.sha256:
            raise _TransferError(
                f"its SHA-256 is {digest.hexdigest()}, the published one {file.sha256}"
            )


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _TransferError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _TransferError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(str(error) or type(error).__name__) from error


def _opener(connect_seconds: float) -> urllib.request.OpenerDirector:
    """An opener whose connections give up after `connect_seconds`, name lookup included."""

    class Connection(_QuickConnect, http.client.HTTPConnection):
        budget = connect_seconds

    class SecureConnection(_QuickConnect, http.client.HTTPSConnection):
        budget = connect_seconds

    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(SecureConnection, req, context=ssl.create_default_context())

    return urllib.request.build_opener(Handler, SecureHandler)


class _QuickConnect:
    """Connects in a thread: a socket's own timeout covers neither name lookup nor all addresses."""

    budget: float

    def connect(self) -> None:
        outcome: list[BaseException] = []

        def attempt() -> None:
            try:
                super(_QuickConnect, self).connect()  # pyright: ignore[reportAttributeAccessIssue]
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(self.budget)
        if thread.is_alive():
            raise TimeoutError(f"no connection within {self.budget:.1f} s")
        if outcome:
            raise outcome[0]
        self.sock.settimeout(READ_SECONDS)  # pyright: ignore[reportAttributeAccessIssue]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
