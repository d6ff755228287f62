"""Clusters to attack: one without TLS and one with it, which the attacks of a process share as long as they stand.

They end with the last attack: six idle hosts take a tenth of two cores from the tests that come after it.
"""

import pytest

from tests.attacks.cluster import Target


class Shared:
    """Targets by their settings; one that an attack has broken is replaced by the next one."""

    def __init__(self, folder):
        self._folder, self._made, self._targets = folder, 0, {}

    def get(self, **settings):
        key = tuple(sorted(settings.items()))
        target = self._targets.get(key)
        if target is not None and not target.healthy:
            self._targets.pop(key).__exit__()
            target = None
        if target is None:
            self._made += 1
            target = Target(self._folder / str(self._made), **settings)
            self._targets[key] = target.__enter__()
        return target

    def close(self):
        for target in self._targets.values():
            target.__exit__()


@pytest.fixture(scope="package")
def shared(tmp_path_factory):
    targets = Shared(tmp_path_factory.mktemp("attacks"))
    yield targets
    targets.close()


@pytest.fixture
def plain(shared):
    return shared.get(tls=False)


@pytest.fixture
def secure(shared):
    return shared.get(tls=True)


@pytest.fixture(params=["plain", "tls"])
def either(request, shared):
    return shared.get(tls=request.param == "tls")
