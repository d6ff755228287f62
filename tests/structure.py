"""The modules of the library, and who imports whom; and from that the picture of the rooms in the README."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("handlers", "transport", "actors")


def modules():
    return {
        "drakkar." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.name not in {"__init__.py", "__main__.py"}
    }


def imports_of(path, known):
    """The modules that a module names in any import, those for a type checker alone included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


GRAPH = {name: imports_of(path, set(modules())) for name, path in modules().items()}

SHOWN = (
    "handlers",
    "handlers.raft",
    "handlers.testing",
    "transport",
    "actors.runtime",
    "actors.log",
    "actors.snapshots",
    "actors.machine",
    "actors.remote",
    "actors.node",
    "actors.names",
    "actors.host",
    "actors.tools",
)


def room_of(module):
    """The room that a module lives in, without the package's name."""
    return module.removeprefix("drakkar.").rpartition(".")[0]


def rooms():
    """Each room with the rooms that its modules import."""
    found = {}
    for module, imported in GRAPH.items():
        found.setdefault(room_of(module), set()).update(map(room_of, imported))
    return {room: others - {room} for room, others in found.items()}


def level(room, graph):
    """How many rooms lie below this one, at most, on the way down."""
    return 1 + max((level(other, graph) for other in graph[room]), default=-1)


def purpose(room):
    """The first sentence of the room's door."""
    tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text())
    return ast.get_docstring(tree).split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def picture():
    """The rooms, the highest first: a room imports only from rooms below it."""
    graph = rooms()
    assert set(graph) == set(SHOWN)
    floors = {}
    for room in SHOWN:
        floors.setdefault(level(room, graph), []).append(room)
    return "\n".join(
        f"{floor}  {room.replace('.', '/') + '/':<18} {purpose(room)}"
        for floor in sorted(floors, reverse=True)
        for room in floors[floor]
    )
