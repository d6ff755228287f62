"""The structure of the code: no circles, and what serves any protocol knows nothing of Raft."""

import pytest

from tests.structure import GRAPH


def circle(graph):
    """A way that leads back to where it begins; empty if there is none."""
    done = set()

    def search(module, way):
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := search(other, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := search(module, []))), [])


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_in_a_circle():
    assert not circle(GRAPH), " -> ".join(circle(GRAPH))


@pytest.mark.parametrize(
    "module", sorted(name for name in GRAPH if name.startswith("drakkar.handlers.") and name.count(".") == 2)
)
def test_what_serves_any_protocol_knows_nothing_of_raft(module):
    assert not [name for name in GRAPH[module] if name.startswith("drakkar.handlers.raft")]
