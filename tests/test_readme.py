"""What the README shows is what there is."""

import re
import socket
from contextlib import ExitStack

from drakkar.actors import NodeHost
from drakkar.handlers import State

from tests import readme


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def test_the_matrix_is_the_one_in_the_code():
    shown = readme.BLOCK.search(readme.README.read_text())
    assert shown is not None
    assert shown[0] == readme.matrix(), "run `python -m tests.readme`"


def test_the_embedding_example_counts_to_five_on_three_hosts(tmp_path, capsys):
    """Run as it stands, but for the addresses; the other two hosts run the same class."""
    text, _ = readme.snippets()
    addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}
    for number, address in addresses.items():
        text = text.replace(f"10.0.0.{number}:7000", address)
    text = text.replace('data_dir="data"', f"data_dir={str(tmp_path / '1')!r}")
    class_, script = re.split(r"\n\n\n(?=members)", text)
    scope: dict = {}
    exec(class_, scope)  # that is the point

    with ExitStack() as stack:
        for number in (2, 3):
            host = stack.enter_context(NodeHost(addresses[number], data_dir=tmp_path / str(number)))
            host.start_replica(scope["Counter"], shard_id=1, replica_id=number, members=addresses)
        exec(script, scope)
    assert capsys.readouterr().out == "5\n5\n"


def test_the_example_of_an_extended_table_runs():
    _, text = readme.snippets()
    scope: dict = {}
    exec(text, scope)
    table = scope["table"]
    assert table[State.FOLLOWER][scope["AUDIT_PING"]] is scope["answer"]
    assert not table[State.FOLLOWER][scope["AUDIT_PONG"]]
