"""Who may say what to a replica: members what they like, and other hosts little. On real sockets; see "Who may say what"."""

import logging

import pytest
from drakkar.actors import ReplicaRemoved
from drakkar.actors.log.data_dir import renumber
from drakkar.handlers.errors import OutcomeUnknown, ReplicaStopped, RequestDropped
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.handlers.raft.lives import Standing
from drakkar.handlers.raft.state import State
from drakkar.transport.tls import TlsConfig

from tests.actors.support import TIMEOUT_S, Hosts, Ledger, commit, contents, settled, until
from tests.attacks import forge
from tests.attacks.cluster import Authority, context
from tests.attacks.forge import STRANGER
from tests.ports import free_addresses, free_ports

DROPPED = "messages that only members may send: STRANGER"
UNPROVEN = "messages that only members may send: UNPROVEN"


class Saved(Ledger):
    """A ledger whose state can be saved, so that one that joins may be sent it."""

    def save(self, sink):
        sink.write(b"\n".join(self.commands))

    def load(self, source):
        data = source.read()
        self.commands = data.split(b"\n") if data else []


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path) as made:
        yield made


class SecureHosts(Hosts):
    """Hosts with names and certificates of their own."""

    def __init__(self, folder, count):
        super().__init__(count, data=folder)
        names = [f"127.0.2.{number}" for number in range(1, count + 1)]
        self.addresses = [f"{name}:{free_ports(1, name)[0]}" for name in names]
        self.authority = Authority(folder / "certificates")
        self._files = [self.authority.issue(name) for name in names]

    def start(self, number, **options):
        return super().start(number, tls=TlsConfig(**self._files[number - 1]), **options)


def change(call):
    """Ask for a membership change until it is made."""
    until(lambda: not isinstance(settled(call()), RequestDropped | OutcomeUnknown))


def join(hosts, number, leader):
    """Have a replica join a shard, and wait until it votes."""
    host = hosts.hosts.get(number) or hosts.start(number)
    hosts.replicas[number] = host.start_replica(Saved, shard_id=1, replica_id=number, join=True)
    change(lambda: hosts[leader()].add_observer(number, hosts.members[number]))
    until(lambda: hosts[number].status().standing is Standing.SETTLED)
    change(lambda: hosts[leader()].add_replica(number, hosts.members[number]))


def run(hosts, numbers=(1, 2, 3), shard_id=1):
    """Start a shard of these members; return the number of its leader."""
    members = {number: hosts.members[number] for number in numbers}
    replicas = {}
    for number in numbers:
        host = hosts.hosts.get(number) or hosts.start(number)
        replicas[number] = host.start_replica(Saved, shard_id=shard_id, replica_id=number, members=members)
    if shard_id == 1:
        hosts.replicas.update(replicas)
    return replicas, hosts.leader(replicas)


def propose(receiver, sender, command, shard=1):
    return forge.messages(forge.propose(sender, receiver, command, shard))


def dropped(replica, cause=DROPPED):
    return replica.counters.get(cause, 0)


def judged(replica):
    """Count what strangers have said, with what waited for so long that it was dropped before: a busy machine may be late."""
    return dropped(replica) + replica.counters.get("messages that waited for too long", 0)


# ---- strangers


def test_a_stranger_proposes_nothing_and_a_member_does(hosts, caplog):
    _, leader = run(hosts)
    member = hosts.others(leader)[0]
    target, founders = hosts.members[leader], hosts.members
    with forge.introduced(target) as link:
        for number in range(5):
            link.send(forge.shard(1, member, founders), propose(leader, member, b"a stranger's %d" % number))
        until(lambda: dropped(hosts[leader]) == 5)
        link.send(forge.shard(1, 9, founders), propose(leader, 9, b"of an unknown replica"))
        until(lambda: dropped(hosts[leader]) == 6)
        link.send(forge.shard(1, member, founders, founding=b""), propose(leader, member, b"of no founding"))
        until(lambda: dropped(hosts[leader], UNPROVEN) == 1)
    commit(hosts[leader], b"ours")
    assert contents(hosts[leader]) == [b"ours"]
    told = [record.getMessage() for record in caplog.records if "drops PROPOSE" in record.getMessage()]
    assert len(told) == 2, "once a minute and cause"
    assert f"of replica {member} at {STRANGER}:1" in told[0]
    # The same frames, of the host at the member's address.
    hosts.stop(member)
    with forge.introduced(target, hosts.members.get(member), source="127.0.0.1") as link:
        link.send(forge.shard(1, member, founders), propose(leader, member, b"a member's"))
        until(lambda: contents(hosts[leader]) == [b"ours", b"a member's"])


ANSWERS = (
    MessageType.NO_OP,
    MessageType.REQUEST_VOTE_RESP,
    MessageType.REPLICATE_RESP,
    MessageType.TIMEOUT_NOW,
)
LEADERS = (
    MessageType.HEARTBEAT,
    MessageType.REPLICATE,
    MessageType.COMMIT,
    MessageType.REQUEST_VOTE,
    MessageType.REMOVED,
)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_stranger_neither_raises_the_term_nor_takes_the_leaders_place(tmp_path, secure):
    """Without TLS it can say what any host may: then it could also name the address of a member."""
    with SecureHosts(tmp_path, 3) if secure else Hosts(3, data=tmp_path) as hosts:
        _, leader = run(hosts)
        commit(hosts[leader], b"a")
        term = hosts[leader].status().term
        outsider = hosts.authority.client(STRANGER) if secure else None
        types = ANSWERS + LEADERS if secure else ANSWERS
        for number, address in hosts.members.items():
            with forge.introduced(address, tls=outsider) as link:
                for sender in (9, number % 3 + 1):
                    replica, expected = hosts[number], judged(hosts[number]) + len(types)
                    said = [
                        Message(type_, to=number, sender=sender, shard=1, term=1 << 40, log_index=1)
                        for type_ in types
                    ]
                    link.send(forge.shard(1, sender, hosts.members), forge.messages(*said))
                    until(lambda it=replica, count=expected: judged(it) == count)
        assert commit(hosts[leader], b"b") == 2
        assert {hosts[number].status().term for number in hosts.members} == {term}
        assert {hosts[number].status().leader_id for number in hosts.members} == {leader}


def test_without_tls_any_host_that_knows_the_founding_may_lead(hosts):
    """The control: with the same frames a follower takes up a term."""
    _, leader = run(hosts)
    follower = hosts.others(leader)[0]
    term = hosts[leader].status().term
    heartbeat = Message(MessageType.HEARTBEAT, to=follower, sender=leader, shard=1, term=term + 3)
    with forge.introduced(hosts.members[follower]) as link:
        link.send(forge.shard(1, leader, hosts.members), forge.messages(heartbeat))
        until(lambda: hosts[follower].status().term >= term + 3)
    commit(hosts[follower], b"a")


def test_no_other_host_speaks_as_a_leader_that_is_followed_and_not_known(hosts):
    """Neither by its id nor by another one: a term has one leader, and that does not move."""
    hosts.run(Saved, numbers=[1])
    last, begun = hosts[1].status().last_index, {"to": 1, "shard": 1, "term": 5}
    commands = [Entry(last + 1, 5, payload=b"the leader's")]
    append = {"log_index": last, "log_term": 1, "commit": last + 1, **begun}
    with (
        forge.introduced(hosts.members[1]) as leader,
        forge.introduced(hosts.members[1], f"{STRANGER}:2") as link,
    ):
        leader.send(
            forge.shard(1, 9, hosts.members),
            forge.messages(Message(MessageType.HEARTBEAT, sender=9, **begun)),
        )
        until(lambda: hosts[1].status().leader_id == 9)
        before = dropped(hosts[1])
        for sender in (8, 9):
            said = [
                Message(
                    MessageType.REPLICATE,
                    sender=sender,
                    entries=[Entry(last + 1, 5, payload=b"no")],
                    **append,
                ),
                Message(MessageType.READ_INDEX_RESP, sender=sender, **begun),
            ]
            link.send(forge.shard(1, sender, hosts.members), forge.messages(*said))
        until(lambda: dropped(hosts[1]) == before + 4)
        assert hosts[1].status().last_index == last
        # What it may say, it is heard with.
        leader.send(
            forge.shard(1, 9, hosts.members),
            forge.messages(Message(MessageType.REPLICATE, sender=9, entries=commands, **append)),
        )
        until(lambda: hosts[1].status().applied == last + 1)
    assert hosts[1].stale_read(None).get(timeout=TIMEOUT_S) == [b"the leader's"]


def test_what_a_stranger_says_of_a_member_takes_no_place_of_it(hosts):
    """Neither as a newborn, which would have the member's progress forgotten and its home replaced, nor as an older life."""
    _, leader = run(hosts)
    commit(hosts[leader], b"a")
    member = hosts.others(leader)[0]
    match = hosts[leader].status().match[member]
    answer = Message(
        MessageType.HEARTBEAT_RESP, to=leader, sender=member, shard=1, term=99, log_index=1 << 40
    )
    with forge.introduced(hosts.members[leader]) as link:
        for standing in Standing:
            link.send(forge.shard(1, member, hosts.members, standing=standing), forge.messages(answer))
            link.send(forge.shard(1, 9, hosts.members, standing=standing), forge.messages(answer))
        until(lambda: dropped(hosts[leader]) >= len(Standing))
    for number in range(3):
        commit(hosts[leader], b"%d" % number)
    status = hosts[leader].status()
    assert (status.state.name, status.refused) == ("LEADER", {})
    assert status.match[member] >= match
    until(lambda: contents(hosts[member]) == [b"a", b"0", b"1", b"2"])


def test_a_host_that_has_not_shown_that_it_is_where_it_says_is_never_dialed(hosts):
    _, leader = run(hosts)
    [elsewhere] = free_addresses(1)
    at_home = f"{STRANGER}:{free_ports(1, STRANGER)[0]}"
    ask = Message(MessageType.NEWBORN, to=leader, sender=9, shard=1, term=1, hint=5)  # it is answered at once
    for address in (elsewhere, at_home):
        with forge.introduced(hosts.members[leader], address) as link:
            link.send(forge.shard(1, 9, hosts.members), forge.messages(ask))
            if address == elsewhere:
                until(lambda: hosts[leader].counters.get("messages without an address", 0))
            else:
                until(lambda: at_home in hosts.hosts[leader].peers())
    assert elsewhere not in hosts.hosts[leader].peers()


def test_a_member_of_one_shard_is_a_stranger_to_another_of_the_same_host(hosts):
    _, leader = run(hosts)
    second, second_leader = run(hosts, (1, 2), shard_id=2)
    hosts.stop(3)
    leader = hosts.leader({number: hosts[number] for number in (1, 2)})
    two = {number: hosts.members[number] for number in (1, 2)}
    with forge.introduced(hosts.members[leader], hosts.members[3], source="127.0.0.1") as link:
        link.send(forge.shard(1, 3, hosts.members), propose(leader, 3, b"to its own shard"))
        until(lambda: contents(hosts[leader]) == [b"to its own shard"])
    other = 3 - second_leader
    with forge.introduced(hosts.members[second_leader], hosts.members[3], source="127.0.0.1") as link:
        for sender in (3, other):
            for standing in Standing:
                link.send(
                    forge.shard(2, sender, two, standing=standing),
                    propose(second_leader, sender, b"to another one", shard=2),
                )
        until(lambda: dropped(second[second_leader]) == 2 * len(Standing))
    assert commit(second[second_leader], b"ours") == 1
    assert second[second_leader].status().refused == {}


def test_a_jump_of_the_term_is_told_with_its_sender(hosts, caplog):
    _, leader = run(hosts)
    commit(hosts[leader], b"a")
    follower = next(number for number in hosts.others(leader))
    absurd = hosts[leader].status().term + 2_000_000
    hosts.stop(leader)
    with forge.introduced(hosts.members[follower], hosts.members.get(leader), source="127.0.0.1") as link:
        heartbeat = Message(MessageType.HEARTBEAT, to=follower, sender=leader, shard=1, term=absurd)
        link.send(forge.shard(1, leader, hosts.members), forge.messages(heartbeat))
        until(lambda: hosts[follower].status().term >= absurd)

    def told():
        return [record for record in caplog.records if "its term rose" in record.getMessage()]

    until(told)
    assert all(record.levelno == logging.WARNING for record in told())
    assert any(f"of replica {leader} at {hosts.addresses[leader - 1]}" in it.getMessage() for it in told())


# ---- those that are right, though they are not known


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_one_that_slept_while_all_others_were_replaced_follows_the_new_ones(tmp_path, secure):
    """It knows none of them, and two of them have joined."""
    with SecureHosts(tmp_path, 5) if secure else Hosts(5, data=tmp_path) as hosts:
        run(hosts)
        alive = {1, 2}

        def leader():
            return hosts.leader({number: hosts[number] for number in alive})

        commit(hosts[3], b"a")
        hosts.stop(3)
        for number in (4, 5):
            join(hosts, number, leader)
            alive.add(number)
        for number in (1, 2):
            change(lambda number=number: hosts[leader()].remove_replica(number))
            alive.discard(number)
        commit(hosts[leader()], b"b")
        for number in (1, 2):
            hosts.stop(number)
        slept = hosts.start(3).start_replica(Saved, shard_id=1, replica_id=3)
        hosts.replicas[3] = slept
        until(lambda: contents(slept) == [b"a", b"b"])
        commit(slept, b"c")
        assert set(slept.status().voters) == {3, 4, 5}
        # It counts: without it there is no quorum.
        hosts.stop(4 if leader() == 5 else 5)
        commit(slept, b"d")


def test_a_removed_replica_hears_that_it_was_removed(hosts):
    _, leader = run(hosts)
    gone = hosts.others(leader)[0]
    hosts.stop(gone)
    change(lambda: hosts[hosts.leader()].remove_replica(gone))
    told = []
    host = hosts.start(gone)
    host.subscribe(told.append)
    replica = host.start_replica(Saved, shard_id=1, replica_id=gone)
    until(lambda: ReplicaRemoved(1, gone) in told)
    assert isinstance(settled(replica.propose(b"x")), ReplicaStopped | RequestDropped)


def test_followers_and_observers_forward_proposals_and_reads(tmp_path):
    with Hosts(4, data=tmp_path) as hosts:
        _, leader = run(hosts)
        hosts.replicas[4] = hosts.start(4).start_replica(
            Saved, shard_id=1, replica_id=4, join=True, role=State.OBSERVER
        )
        change(lambda: hosts[leader].add_observer(4, hosts.members[4]))
        until(lambda: hosts[4].status().standing is Standing.SETTLED)
        for number in (*hosts.others(leader), 4):
            commit(hosts[number], b"%d" % number)
            assert contents(hosts[number])[-1] == b"%d" % number
        assert not any(dropped(hosts[number]) for number in hosts.members)


def test_a_member_that_moved_is_answered_by_one_that_has_not_heard_of_it(hosts):
    """The third one, which has, is down. The two can only go on together."""
    _, leader = run(hosts)
    commit(hosts[leader], b"a")
    moved, asleep = hosts.others(leader)
    hosts.stop(asleep)
    [new] = free_addresses(1)
    change(lambda: hosts[leader].update_address(moved, new))
    until(lambda: hosts[moved].status().addresses[moved] == new)
    hosts.stop(moved)
    hosts.stop(leader)
    renumber(hosts.data / str(moved), new)
    hosts.replicas[asleep] = hosts.start(asleep).start_replica(Saved, shard_id=1, replica_id=asleep)
    assert hosts[asleep].status().addresses[moved] != new
    hosts.addresses[moved - 1] = new
    hosts.replicas[moved] = hosts.start(moved).start_replica(Saved, shard_id=1, replica_id=moved)
    commit(hosts[moved], b"b")
    until(lambda: contents(hosts[asleep]) == [b"a", b"b"])
    assert hosts[asleep].status().addresses[moved] == new


# ---- what strangers with a certificate may do


def test_a_certificate_of_a_non_member_makes_it_no_member(tmp_path):
    with SecureHosts(tmp_path, 3) as hosts:
        _, leader = run(hosts)
        member = hosts.others(leader)[0]
        home = hosts.hosts[member]._transport
        outsider = hosts.authority.client(STRANGER)
        copied = {"host_id": home.host_id, "run": home._identity.run}
        for identity in ({}, copied):
            with forge.introduced(hosts.members[leader], tls=outsider, **identity) as link:
                before = dropped(hosts[leader])
                link.send(
                    forge.shard(1, member, hosts.members, standing=Standing.SETTLED),
                    propose(leader, member, b"an outsider's"),
                )
                until(lambda before=before: dropped(hosts[leader]) > before)
        hosts.stop(member)
        files = context(hosts._files[member - 1])
        ended = home._identity.run  # nothing of it counts any more, so this is the next one
        copied["run"] = forge.Run(ended.count + 1, (ended.nonces[0] + 1, *ended.nonces))
        with forge.introduced(
            hosts.members[leader], hosts.members.get(member), tls=files, source=f"127.0.2.{member}", **copied
        ) as link:
            link.send(forge.shard(1, member, hosts.members), propose(leader, member, b"a member's"))
            until(lambda: contents(hosts[leader]) == [b"a member's"])
