"""Whether the core is compiled where these tests run, as it is under `make check-compiled`."""

from typing import Final

import pytest
from drakkar.handlers.raft import core

COMPILED: Final = not str(core.__file__).endswith(".py")

reads_the_source = pytest.mark.skipif(COMPILED, reason="compiled functions have no docstrings")
