"""Who may say what: a host that is no member proposes, reads, acknowledges and transfers nothing, and is not dialed."""

import socket
import threading
import time
from dataclasses import replace

import pytest
from drakkar.actors.node.introductions import MAX_STRANGERS
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.handlers.raft.state import Membership, Snapshot
from drakkar.transport.addresses import canonical

from tests.actors.support import until
from tests.attacks import forge
from tests.attacks.cluster import TICK
from tests.ports import free_ports

pytestmark = pytest.mark.xdist_group("attacks")

ALONE = 2
"""A shard that the tests of this file have to themselves, beside that of the innocent."""
SIXTH = 6
"""One that unknown replicas may claim for themselves."""


@pytest.fixture(params=[pytest.param("plain", marks=pytest.mark.slow), "tls"])
def target(request, shared):
    """A cluster with a second shard, which has the same members."""
    return _with_a_second_shard(shared.get(tls=request.param == "tls"))


@pytest.fixture
def certified(shared):
    """The one of these with TLS, where a host that is no member has a certificate: it is believed no more than without."""
    return _with_a_second_shard(shared.get(tls=True))


def _with_a_second_shard(target):
    if ALONE not in target.opened:
        target.open_shard(ALONE)
    target.ask(1, "lead", shard=ALONE)
    return target


def _outsider(target, replica=9, **fields):
    """A host that is no member, has a valid certificate where there is TLS, and knows how the shard was founded."""
    link = forge.introduced(target.members[1], tls=target.outsider)
    link.send(forge.shard(ALONE, replica, target.members, **fields))
    return link


def _member(target, replica=2):
    """A link of the host of a member: what it sends is the control."""
    link = forge.introduced(
        target.members[1],
        target.members[replica],
        host_id=target.ask(replica, "host_id"),
        run=forge.Run(*target.ask(replica, "run")),
        **target.member(replica),
    )
    link.send(forge.shard(ALONE, replica, target.members))
    return link


def _count(target):
    return until(lambda: _read(target))[0]


def _read(target):
    try:
        return (target.ask(1, "read", shard=ALONE),)
    except RuntimeError:
        return None


def test_proposals(target):
    with target.attack("proposals of a host that is no member") as seen:
        before = _count(target)
        for replica in (9, 2):  # by an id of its own, and by one of a member
            with _outsider(target, replica) as link:
                link.send(forge.messages(*[forge.propose(replica, 1, b"forged", ALONE)] * 10))
                seen.watch(0.5)
        assert _count(target) == before
    legal = forge.messages(forge.propose(2, 1, b"legal", ALONE))
    forge.say_until(lambda: _member(target), legal, lambda: _count(target) > before)


def test_what_follows_an_introduction_that_was_forgotten(either):
    """A host remembers so many strangers. A proposal in the name of one that it has just forgotten is no member's."""
    target = _with_a_second_shard(either)
    others = range(100, 100 + MAX_STRANGERS + len(target.members))
    with target.attack("proposals of replicas whose introduction is forgotten") as seen:
        before = _count(target)
        with forge.introduced(target.members[1], tls=target.outsider) as link:

            def forgotten():
                """The host may have done with the first ones before the last ones came: then they are sent again."""
                link.send(
                    *[forge.shard(ALONE, replica, target.members) for replica in (9, *others)],
                    forge.messages(*[forge.propose(9, 1, b"forged", ALONE)] * 10),
                )
                counted = target.ask(1, "counts", shard=ALONE)
                return "messages that only members may send: NOT_INTRODUCED" in counted

            until(forgotten)
            seen.watch(0.3)
        assert _count(target) == before
    legal = forge.messages(forge.propose(2, 1, b"legal", ALONE))
    forge.say_until(lambda: _member(target), legal, lambda: _count(target) > before)


@pytest.mark.slow
def test_transfers_of_the_leadership(certified):
    order = {"to": 1, "shard": ALONE, "hint": 2}
    with certified.attack("transfers of the leadership by a host that is no member") as seen:
        before = certified.status(1, ALONE)
        for replica in (9, 2):
            with _outsider(certified, replica) as link:
                link.send(forge.messages(Message(MessageType.LEADER_TRANSFER, sender=replica, **order)))
                seen.watch(0.5)
        after = certified.status(1, ALONE)
        assert (after["leader"], after["term"]) == (before["leader"], before["term"])
    with _member(certified, 3) as link:
        link.send(forge.messages(Message(MessageType.LEADER_TRANSFER, sender=3, **order)))
        until(lambda: certified.status(1, ALONE)["leader"] == 2)


LEADERS = ("REPLICATE", "HEARTBEAT", "COMMIT")
"""What a leader says that members have elected who are not known here. Without certificates each host may say it: the same frames
with the address of a member would be taken in any case."""
TYPES = (
    "REQUEST_VOTE", "REQUEST_PRE_VOTE", "TIMEOUT_NOW", "REPLICATE_RESP", "REQUEST_VOTE_RESP", "HEARTBEAT_RESP", "NO_OP",
)  # fmt: skip


@pytest.mark.slow
def test_terms_by_a_members_id(certified):
    """No host raises the term in the name of a replica that is known to live elsewhere."""
    with certified.attack("later terms by the id of a member") as seen:
        before = certified.status(1, ALONE)["term"]
        for kind in TYPES + LEADERS * bool(certified.tls):
            with _outsider(certified, 2) as link:
                link.send(forge.rows(forge.row(type=int(MessageType[kind]), shard=ALONE, term=before + 1000)))
                seen.watch(0.3)
            assert certified.status(1, ALONE)["term"] < before + 1000, kind
    with _member(certified) as link:
        link.send(forge.rows(forge.row(type=int(MessageType.REPLICATE), shard=ALONE, term=before + 1000)))
        until(lambda: certified.status(1, ALONE)["term"] >= before + 1000)


@pytest.mark.slow
def test_acknowledgements(certified):
    """Two of three hosts are down: no word of a stranger makes their acknowledgements."""
    with certified.attack("forged acknowledgements, while two of three hosts are down") as seen:
        seen.watch(0.5)
        term, commit = (certified.status(1, ALONE)[name] for name in ("term", "commit"))
        with _outsider(certified, 2) as link:
            certified.kill(2, 3)
            proposal = threading.Thread(target=_propose, args=(certified, answers := []))
            proposal.start()
            for _ in range(20):
                link.send(
                    forge.rows(
                        *[
                            forge.row(
                                type=int(MessageType.REPLICATE_RESP), shard=ALONE, term=term, log_index=index
                            )
                            for index in range(commit, commit + 20)
                        ]
                    )
                )
                time.sleep(0.05)
            proposal.join()
        certified.start_again(2, 3)
        certified.ask(1, "lead", shard=1)
    assert answers == ["refused"], "a command was committed by one of three"


def _propose(target, answers):
    try:
        target.ask(1, "propose", shard=ALONE, command="alone", within=1.0)
        answers.append("committed")
    except RuntimeError:
        answers.append("refused")


# ---- who is dialed


@pytest.mark.slow
@pytest.mark.parametrize("way", ["a message", "another founding"])
def test_no_host_dials_where_a_stranger_says(target, way):
    """It introduces itself by an address that is not its own; at that address, a third party listens."""
    victim = "127.0.7.7"
    port = free_ports(1, victim)[0]
    with (
        socket.create_server((victim, port)) as listener,
        target.attack(f"an address of a third party, by {way}") as seen,
    ):
        listener.settimeout(1.0)
        try:
            with forge.introduced(target.members[1], f"{victim}:{port}", tls=target.outsider) as link:
                founding = {} if way == "a message" else {"founding": b"x" * 16}
                link.send(forge.shard(ALONE, 9, target.members, **founding))
                term = target.status(1, ALONE)["term"]
                for kind in (MessageType.REQUEST_PRE_VOTE, MessageType.HEARTBEAT, MessageType.REMOVAL_QUERY):
                    link.send(forge.rows(forge.row(type=int(kind), sender=9, shard=ALONE, term=term)))
                seen.watch(1)
        except PermissionError:
            assert target.tls, "without TLS, any name may introduce itself"
            seen.watch(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()


# ---- from one shard to another


@pytest.mark.slow
def test_a_member_of_one_shard_does_nothing_to_another(certified):
    """Host 3 has a replica of shard 1, and none of shard 3. It is as much a stranger to that one as any."""
    shard = 3
    certified.open_shard(shard, numbers=(1, 2))
    with certified.attack("proposals to another shard, by a member of one") as seen:
        before = certified.ask(1, "read", shard=shard)
        with _member(certified, 3) as link:
            founders = {n: canonical(certified.members[n]) for n in (1, 2)}
            for replica in (2, 3):
                link.send(forge.shard(shard, replica, founders))
                link.send(forge.messages(forge.propose(replica, 1, b"forged", shard)))
                term = certified.status(1, shard)["term"]
                link.send(
                    forge.rows(
                        forge.row(type=int(MessageType.REPLICATE), shard=shard, sender=replica, term=term + 9)
                    )
                )
            seen.watch(1)
        assert certified.ask(1, "read", shard=shard) == before
        assert certified.status(1, shard)["leader"] == 1


# ---- in the name of a replica that is not known


def _claims(target, term):
    """What a host says that would lead, or end, a shard: its replica is not known here, as a new leader's may not be."""
    gone = Membership(dict(target.members), removed=(1, 2, 3))
    kept = Membership({**target.members, 9: "127.0.9.9:1"})
    newer = {"sender": 9, "shard": SIXTH, "term": term + 1000}
    entry = Entry(1000, term + 1000, payload=b"forged")
    return {
        "a heartbeat": Message(MessageType.HEARTBEAT, **newer, commit=1000),
        "entries": Message(
            MessageType.REPLICATE, **newer, entries=(entry,), log_index=999, log_term=term, commit=1000
        ),
        "a commit": Message(MessageType.COMMIT, **newer, commit=1000),
        "a commit in this term": Message(MessageType.COMMIT, sender=9, shard=SIXTH, term=term, commit=1000),
        "a snapshot": Message(
            MessageType.INSTALL_SNAPSHOT, **newer, snapshot=Snapshot(1000, term + 1000, kept, witness=True)
        ),
        "news of a removal": Message(
            MessageType.REMOVED, **newer, snapshot=Snapshot(1000, term + 1000, gone, witness=True)
        ),
        "news of a removal in this term": Message(
            MessageType.REMOVED,
            sender=9,
            shard=SIXTH,
            term=term,
            snapshot=Snapshot(1000, term, gone, witness=True),
        ),
        "an order to campaign": Message(MessageType.TIMEOUT_NOW, sender=9, shard=SIXTH, term=term),
        "a vote by order": Message(
            MessageType.REQUEST_VOTE, **newer, hint=9, log_index=10**6, log_term=term + 999
        ),
        "a vote": Message(MessageType.REQUEST_VOTE, **newer, log_index=10**6, log_term=term + 999),
        "a pre-vote": Message(MessageType.REQUEST_PRE_VOTE, **newer, log_index=10**6, log_term=term + 999),
        "an empty directory": Message(MessageType.NEWBORN, sender=9, shard=SIXTH, term=term, hint=77),
        "a question of a removed replica": Message(
            MessageType.REMOVAL_QUERY, sender=9, shard=SIXTH, term=term
        ),
    }


@pytest.mark.slow
def test_no_unknown_replica_leads_or_ends_a_shard_that_has_a_leader(secure):
    """Where there is TLS. Without it, this is what the page on security warns of."""
    target = secure
    if SIXTH not in target.opened:
        target.open_shard(SIXTH)
    with target.attack("claims of the leadership, and of removals, by a replica that is not known") as seen:
        target.ask(1, "propose", shard=SIXTH, command="before")
        before = target.status(1, SIXTH)
        for what, message in _claims(target, before["term"]).items():
            for host in target.hosts:
                with forge.introduced(target.members[host], tls=target.outsider) as link:
                    link.send(forge.shard(SIXTH, 9, target.members))
                    link.send(forge.messages(replace(message, to=host)))
                    seen.watch(0.1)
            after = [target.status(host, SIXTH) for host in target.hosts]
            assert not any(each["ended"] for each in after), what
            assert {each["term"] for each in after} == {before["term"]}, what
            assert {each["leader"] for each in after} == {1}, what
        assert target.ask(1, "propose", shard=SIXTH, command="after") == target.ask(1, "read", shard=SIXTH)


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "what"), [(7, "a heartbeat"), (8, "news of a removal")])
def test_no_unknown_replica_leads_or_ends_a_shard_that_sleeps(secure, shard, what):
    """No leader is heard in an idle shard, and yet it has one."""
    secure.open_shard(shard, config={"quiesce": True})
    with secure.attack(f"{what} by a replica that is not known, to a shard that sleeps") as seen:
        secure.ask(1, "propose", shard=shard, command="before")
        seen.watch(250 * TICK)
        term = secure.status(1, shard)["term"]
        message = replace(_claims(secure, term)[what], shard=shard)
        for host in secure.hosts:
            with forge.introduced(secure.members[host], tls=secure.outsider) as link:
                link.send(forge.shard(shard, 9, secure.members))
                link.send(forge.messages(replace(message, to=host)))
                seen.watch(0.3)
        after = [secure.status(host, shard) for host in secure.hosts]
        assert all(
            each["term"] < term + 100 and each["commit"] < 1000 and not each["ended"] for each in after
        ), after
        secure.ask(1, "lead", shard=shard)
        assert secure.ask(1, "propose", shard=shard, command="after") == secure.ask(1, "read", shard=shard)


@pytest.mark.slow
def test_no_unknown_replica_leads_a_shard_that_elects_a_leader(secure):
    """Its leader's host is killed, and the others hold an election: a claim meanwhile is not believed either."""
    if SIXTH not in secure.opened:
        secure.open_shard(SIXTH)
    secure.ask(1, "propose", shard=SIXTH, command="before")
    secure.ask(2, "lead", shard=SIXTH)
    with secure.attack("claims by a replica that is not known, while the leader's host is down") as seen:
        term = secure.status(1, SIXTH)["term"]
        claims = _claims(secure, term).values()
        secure.kill(2)
        until_ = time.monotonic() + 3
        while time.monotonic() < until_:
            for host in (1, 3):
                with forge.introduced(secure.members[host], tls=secure.outsider) as link:
                    link.send(forge.shard(SIXTH, 9, secure.members))
                    link.send(forge.messages(*[replace(message, to=host) for message in claims]))
                    seen.watch(0.1)
        until(lambda: secure.status(1, SIXTH)["leader"] in {1, 3}, 5)
        secure.start_again(2)
        after = secure.status(1, SIXTH)["term"]
        assert after < term + 100
        seen.note(f"elected within {after - term} terms")
    secure.ask(1, "lead", shard=SIXTH)
    assert secure.ask(1, "propose", shard=SIXTH, command="after") == secure.ask(1, "read", shard=SIXTH)
