"""What the tests of the tools share."""

import pytest

from tests.actors.tools.support import Directory


@pytest.fixture
def survivor(tmp_path):
    return Directory(tmp_path / "survivor")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "export"
