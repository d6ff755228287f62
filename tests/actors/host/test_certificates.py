"""Hosts with certificates: who may speak as whom, and how certificates are replaced."""

import logging
from pathlib import Path

import pytest
import trio
import trustme
from drakkar.actors import ConfigError, NodeHost, TlsConfig
from drakkar.handlers.messages import Message, MessageType
from drakkar.transport.hello import Run
from drakkar.transport.tcp import TcpTransport

from tests.actors.support import TICK, Hosts, Ledger, commit, until
from tests.ports import free_addresses


class Authority:
    """An authority, and the certificates that it makes."""

    def __init__(self, folder: Path):
        self.authority, self.folder = trustme.CA(), folder
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)

    def config(self, name="127.0.0.1", into="", **options):
        issued = self.authority.issue_cert(name)
        cert, key = (self.folder / f"{into or name}.{end}" for end in ("pem", "key"))
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return TlsConfig(self.ca, cert, key, **options)


@pytest.fixture
def ours(tmp_path):
    return Authority(tmp_path)


def warnings(caplog, *words):
    said = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    return [line for line in said if all(word in line for word in words)]


def test_a_host_with_the_certificate_of_another_name_is_no_member(ours, caplog):
    """It is one of the authority's, and its name is no member's."""
    real, member, elsewhere = free_addresses(3)
    members = {1: real, 2: member}
    with (
        NodeHost(real, tls=ours.config(), tick_interval=TICK) as host,
        NodeHost(
            member, listen_address=elsewhere, tls=ours.config("localhost"), tick_interval=TICK
        ) as impostor,
    ):
        first = host.start_replica(Ledger, shard_id=1, replica_id=1, members=members)
        impostor.start_replica(Ledger, shard_id=1, replica_id=2, members=members)
        told = f"the certificate of {member} is for 'localhost', and not for '127.0.0.1'"
        for line in (f"{real}: closed the connection", f"{member}: cannot reach {real}"):
            until(lambda line=line: any(each.startswith(line) for each in warnings(caplog, told)))
        assert host.counters["transport: accepted"] == 0
        assert impostor.counters["transport: connects"] == 0
        assert not first.status().leader_id


async def claim(config, address, run, host_id):
    """Introduce oneself to a host with a certificate of one's own, and with the id of another host."""
    thief = TcpTransport("localhost:0", deliver=print, unreachable=print, tls=config)
    thief.identify(host_id, run)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(thief.serve)
            thief.send(address, [Message(MessageType.HEARTBEAT, sender=9)])
            while not thief.counters.connects:  # noqa: ASYNC110  # no event
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["before its replicas start", "while they run"])
def test_no_certificate_keeps_another_host_out_by_its_id(ours, tmp_path, when):
    """All that connect to a host are told its id, and which run of it this is."""
    with Hosts(count=2, data=tmp_path / "data", tls=ours.config()) as hosts:
        commit(hosts.run()[1], b"before")
        host_id = hosts.hosts[1]._transport.host_id
        hosts.stop(1)
        hosts.stop(2)
        if when == "before its replicas start":
            hosts.start(2)
        else:
            hosts.run(numbers=[2])
        address = hosts.addresses[1]
        trio.run(claim, ours.config("localhost"), address, Run(1000, (1, 2)), host_id)
        numbers = [1, 2] if when == "before its replicas start" else [1]
        assert commit(hosts.run(numbers=numbers)[1], b"after")


def test_certificates_are_replaced_while_a_shard_works(ours, tmp_path, caplog):
    """Also by those of another authority, in three steps, of which none costs an election."""
    (tmp_path / "theirs").mkdir()
    theirs = Authority(tmp_path / "theirs")
    with Hosts(tls=ours.config()) as hosts:
        replicas = hosts.run(config={"election_ticks": 50})
        commit(replicas[1], b"before")
        term = replicas[1].status().term
        both = tmp_path / "both.pem"
        both.write_bytes(ours.ca.read_bytes() + theirs.ca.read_bytes())
        old, new = ours.config(), theirs.config()
        steps = [TlsConfig(both, old.cert, old.key), TlsConfig(both, new.cert, new.key), new]
        for step in steps:
            for host in hosts.hosts.values():
                host.reload_tls(step)
            commit(replicas[1], b"after")
        assert {replica.status().term for replica in replicas.values()} == {term}
        commit(replicas[2], b"from another")
    # A handshake that one side gave up, since it had new certificates by then, is no refusal of one.
    assert not warnings(caplog, "is not taken")
    assert not warnings(caplog, "the certificate of", "is for")


def test_files_that_cannot_be_used_are_refused_and_nothing_changes(ours):
    config = ours.config()
    with Hosts(count=2, tls=config) as hosts:
        replicas = hosts.run()
        with pytest.raises(ConfigError, match=r"tls\.key"):
            hosts.hosts[1].reload_tls(TlsConfig(ours.ca, config.cert, ours.ca))
        with pytest.raises(ConfigError, match=r"tls='no'"):
            hosts.hosts[1].reload_tls("no")
        hosts.hosts[1].reload_tls()
        commit(replicas[1], b"after")


@pytest.mark.parametrize("named", [False, True])
def test_of_two_loads_the_one_that_read_older_files_does_not_win_by_ending_later(ours, monkeypatch, named):
    config = ours.config()
    with Hosts(count=1, tls=config) as hosts:
        host, load, pending = hosts.start(1), TlsConfig.load, [True]

        def slow(config):
            read = load(config)
            if pending:
                pending.clear()
                ours.config()
                host.reload_tls()
            return read

        monkeypatch.setattr(TlsConfig, "load", slow)
        host.reload_tls(config if named else None)
        assert host._transport.credentials.stamp == config.stamp()


def test_a_host_without_tls_says_so(ours):
    with Hosts(count=1) as hosts:
        hosts.start(1)
        for config in (None, ours.config()):
            with pytest.raises(ConfigError, match="made without"):
                hosts.hosts[1].reload_tls(config)
        assert hosts.hosts[1].metrics()["tls_certificate_seconds"] == float("inf")


def test_the_figures_say_when_the_certificate_expires(ours):
    with Hosts(count=1, tls=ours.config()) as hosts:
        hosts.start(1)
        assert 0 < hosts.hosts[1].metrics()["tls_certificate_seconds"] < float("inf")
