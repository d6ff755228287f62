"""Strangers who hold all connections that they can get keep no member out; and for which hosts places are kept free."""

import logging
import socket
import ssl
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from drakkar.actors import NodeHost
from drakkar.actors.host.options import IN_MEMORY
from drakkar.transport.addresses import parse_address

from tests.actors.host.test_certificates import Authority
from tests.actors.support import TICK, Hosts, Ledger, commit, settled, until
from tests.ports import free_addresses
from tests.transport.support import is_open


def tls_hello():
    """The first bytes of a caller with TLS."""
    sent = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    caller = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="host")
    with suppress(ssl.SSLWantReadError):
        caller.do_handshake()
    return sent.read()


STRANGERS = 300
"""Connections that they hold to each host: more than a host takes of hosts that have introduced themselves."""


@contextmanager
def strangers(address, beginning=b""):
    """Connect as often as there is room, send a beginning, and say no more; open again at once what is closed."""
    over = threading.Event()
    thread = threading.Thread(target=hold, args=(parse_address(address), beginning, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def hold(address, beginning, over):
    held = []
    while not over.wait(0.02):
        held = [one for one in held if is_open(one)]
        while len(held) < STRANGERS:
            try:
                held.append(socket.create_connection(address, timeout=1))
                held[-1].setblocking(False)
                held[-1].send(beginning)
            except OSError:
                break
    for one in held:
        one.close()


@pytest.mark.parametrize(
    ("tls", "beginning"),
    [
        pytest.param(False, b"", id="silent"),
        pytest.param(False, b"DK", id="two bytes"),
        pytest.param(True, b"", id="silent, TLS"),
        pytest.param(True, tls_hello()[:-1], id="nearly a hello, TLS"),
    ],
)
def test_a_restarted_host_is_in_touch_again_although_strangers_hold_all_connections(
    tmp_path, beginning, tls, caplog
):
    options = {"tls": Authority(tmp_path).config()} if tls else {}
    with Hosts(2, data=tmp_path, **options) as hosts, ExitStack() as stack:
        hosts.run()
        commit(hosts[hosts.leader()], b"before")
        for address in hosts.addresses:
            stack.enter_context(strangers(address, beginning))
        until(lambda: all(host.counters["transport: evicted"] > STRANGERS for host in hosts.hosts.values()))
        began = time.monotonic()
        hosts.stop(2)
        hosts.run(numbers=[2])
        commit(hosts[1], b"after")
        took = time.monotonic() - began
        assert [host.counters["transport: refused"] for host in hosts.hosts.values()] == [0, 0]
    assert took < 8
    lines = [record for record in caplog.records if "have not introduced themselves" in record.getMessage()]
    assert (
        len([record for record in lines if record.levelno >= logging.WARNING]) <= 4
    )  # one a minute, host and run


def test_places_are_kept_for_the_members_of_the_shards_that_run_here():
    one, two, three, four = free_addresses(4)

    def kept(host):
        return host._transport._admission._members

    with NodeHost(one, IN_MEMORY, tick_interval=TICK) as host:
        assert kept(host) == frozenset()
        host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: one, 2: two})
        host.start_replica(Ledger, shard_id=2, replica_id=1, members={1: one, 2: two, 3: three})
        assert kept(host) == {two, three}
        alone = host.start_replica(Ledger, shard_id=3, replica_id=1, members={1: one})
        until(lambda: alone.status().leader_id == 1)
        settled(alone.add_observer(2, four))
        until(lambda: kept(host) == {two, three, four})
        alone.stop()
        until(lambda: kept(host) == {two, three})
        host.replica(2).stop()
        until(lambda: kept(host) == {two})


def test_a_host_that_joins_keeps_places_for_the_members_of_which_it_hears(tmp_path):
    with Hosts(2, data=tmp_path) as hosts:
        [joins] = free_addresses(1)
        hosts.run()
        leader = hosts[hosts.leader()]
        settled(leader.add_observer(3, joins))
        with NodeHost(joins, tmp_path / "3", tick_interval=TICK) as host:
            host.start_replica(Ledger, shard_id=1, replica_id=3, join=True, role=None)
            until(lambda: host._transport._admission._members == set(hosts.addresses))
