"""What the README shows is what there is."""

import re
from contextlib import ExitStack

import pykka
import pytest
from drakkar.actors import NodeHost
from drakkar.actors.remote import message_classes
from drakkar.actors.remote.registry import Registry
from drakkar.handlers import State
from drakkar.handlers.testing import Cluster

from tests import readme
from tests.ports import free_ports

pytestmark = pytest.mark.usefixtures("types_of_one_test")


@pytest.mark.parametrize(("name", "picture"), readme.drawn().items(), ids=readme.drawn())
def test_what_the_readme_shows_is_what_the_code_is(name, picture):
    shown = readme.block(name).search(readme.README.read_text())
    assert shown is not None
    assert shown[0] == picture, "run `python -m tests.readme`"


def at_home(text, count):
    """The same with addresses of this machine, which are returned too."""
    addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(count), 1)}
    for number, address in addresses.items():
        text = text.replace(f"10.0.0.{number}:7000", address)
    return text, addresses


def test_the_example_of_two_hosts_calls_from_one_to_the_other(capsys, monkeypatch):
    """Run as it stands, but for the addresses."""
    monkeypatch.setattr(message_classes, "_MESSAGES", Registry("@message", "bank.deposit"))
    text, _ = at_home(readme.snippets()[0], 2)
    scope: dict = {"__name__": "readme"}
    try:
        exec(text, scope)
    finally:
        scope["home"].stop()
        pykka.ActorRegistry.stop_all()
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if not line.startswith("ActorDied")] == ["5", "7"]


def test_the_embedding_example_counts_to_five_on_three_hosts(tmp_path, capsys):
    """Run as it stands, but for the addresses; the other two hosts run the same class."""
    text, addresses = at_home(readme.snippets()[1], 3)
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


def test_the_examples_of_sessions_and_members_work(tmp_path):
    _, counter, session, members, _ = readme.snippets()
    members, addresses = at_home(members, 4)
    scope: dict = {"State": State}
    exec(re.split(r"\n\n\n(?=members)", counter)[0], scope)
    with ExitStack() as stack:
        hosts = {
            number: stack.enter_context(NodeHost(address, data_dir=tmp_path / str(number)))
            for number, address in addresses.items()
        }
        first = {number: addresses[number] for number in (1, 2, 3)}
        for number in first:
            scope["counter"] = hosts[number].start_replica(
                scope["Counter"], shard_id=1, replica_id=number, members=first
            )
        scope["host"] = hosts[4]
        exec(session, scope)
        exec(members, scope)
        assert hosts[4].replica(1).read(None).get(timeout=10) == 5
        assert set(scope["counter"].status().voters) == {2, 3, 4}


def test_the_example_of_an_extended_table_counts_what_is_proposed():
    scope: dict = {}
    exec(readme.snippets()[-1], scope)
    cluster = Cluster(3, handlers=scope["table"])
    cluster.elect(1)
    cluster.propose(2, b"a", b"b")
    assert [cluster.ask(replica, scope["question"]) for replica in (1, 2)] == [{"seen": 2}, {"seen": 0}]
