"""Examples in docstrings leave no network behind."""

from collections.abc import Iterator
from unittest import mock

import pytest

from models import registry


@pytest.fixture(autouse=True)
def _networks_as_before() -> Iterator[None]:
    with mock.patch.dict(registry._NETWORKS):
        yield
