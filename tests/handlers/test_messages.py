"""The vocabulary: types that users extend, memberships in their roles, messages on one line."""

import copy
from typing import Any

import pytest
from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry, EntryKind
from drakkar.handlers.raft.state import Membership, Snapshot, State
from drakkar.handlers.traits import Traits

pytestmark = pytest.mark.usefixtures("types_of_one_test")

IN_DRAGONBOATS_ORDER = [
    "LOCAL_TICK",
    "ELECTION",
    "LEADER_HEARTBEAT",
    "CONFIG_CHANGE_EVENT",
    "NO_OP",
    "PING",
    "PONG",
    "PROPOSE",
    "SNAPSHOT_STATUS",
    "UNREACHABLE",
    "CHECK_QUORUM",
    "BATCHED_READ_INDEX",
    "REPLICATE",
    "REPLICATE_RESP",
    "REQUEST_VOTE",
    "REQUEST_VOTE_RESP",
    "INSTALL_SNAPSHOT",
    "HEARTBEAT",
    "HEARTBEAT_RESP",
    "READ_INDEX",
    "READ_INDEX_RESP",
    "QUIESCE",
    "SNAPSHOT_RECEIVED",
    "LEADER_TRANSFER",
    "TIMEOUT_NOW",
    "RATE_LIMIT",
    "REQUEST_PRE_VOTE",
    "REQUEST_PRE_VOTE_RESP",
    "LOG_QUERY",
]


class TestMessageTypes:
    @pytest.mark.parametrize(("number", "name"), list(enumerate(IN_DRAGONBOATS_ORDER)))
    def test_a_built_in_one_has_dragonboats_number(self, number: int, name: str) -> None:
        known = getattr(MessageType, name)
        assert known == number
        assert known is MessageType(number)
        assert known is MessageType[name]
        assert (known.name, str(known), repr(known)) == (name, name, f"{name}({number})")

    def test_they_are_counted_and_iterated_in_order(self) -> None:
        assert [known.name for known in MessageType][: len(IN_DRAGONBOATS_ORDER)] == IN_DRAGONBOATS_ORDER
        before = len(MessageType)
        ping = MessageType.define("audit.ping", 1000)
        assert len(MessageType) == before + 1
        assert list(MessageType)[-1] is ping

    def test_one_of_your_own_is_as_good_as_a_built_in_one(self) -> None:
        ping = MessageType.define("audit.ping", 1000)
        assert isinstance(ping, int)
        assert ping == 1000
        assert MessageType(1000) is ping
        assert MessageType["audit.ping"] is ping
        assert str(Message(ping, to=2, sender=1)) == "1->2 audit.ping"

    def test_defining_the_same_one_again_gives_the_same_one(self) -> None:
        assert MessageType.define("audit.ping", 1000) is MessageType.define("audit.ping", 1000)

    @pytest.mark.parametrize("number", [1000, 65535])
    def test_both_ends_of_the_range_are_yours(self, number: int) -> None:
        assert MessageType.define("audit.edge", number) == number

    @pytest.mark.parametrize("number", [-1, 0, 12, 29, 999, 65536])
    def test_other_numbers_are_not(self, number: int) -> None:
        with pytest.raises(HandlerTableError, match=f"'audit.ping' has number {number}: .* 1000 to 65535"):
            MessageType.define("audit.ping", number)

    @pytest.mark.parametrize(
        ("name", "number", "taken"),
        [
            pytest.param("audit.pong", 1000, r"audit.ping\(1000\)", id="the number"),
            pytest.param("audit.ping", 1001, r"audit.ping\(1000\)", id="the name"),
            pytest.param("REPLICATE", 1001, r"REPLICATE\(12\)", id="the name of a built-in one"),
            pytest.param(
                "audit.other", 1000, r"audit.ping\(1000\)", id="the number, while the name is another's"
            ),
        ],
    )
    def test_a_clash_is_refused_and_changes_nothing(self, name: str, number: int, taken: str) -> None:
        MessageType.define("audit.ping", 1000)
        MessageType.define("audit.other", 1002)
        before = dict(MessageType.known)
        with pytest.raises(
            HandlerTableError,
            match=f"{name!r} = {number} clashes with {taken}: choose another name and number",
        ):
            MessageType.define(name, number)
        assert MessageType.known == before

    @pytest.mark.parametrize("number", [50, 999, 1000, -1])
    def test_an_unknown_number_is_refused_with_the_remedy(self, number: int) -> None:
        with pytest.raises(ValueError, match=rf"{number} is not a known message type: .*MessageType.define"):
            MessageType(number)

    @pytest.mark.parametrize(
        ("name", "number", "named"),
        [
            pytest.param(
                "OWN", 1000, "has number 1000: the library's own are from 0 to 999", id="an application's"
            ),
            pytest.param("OWN", "9", "has number '9'", id="no number"),
            pytest.param("OWN", 12, r"clashes with REPLICATE\(12\)", id="the number of another"),
            pytest.param("REPLICATE", 999, r"clashes with REPLICATE\(12\)", id="the name of another"),
        ],
    )
    def test_a_type_of_the_library_is_reserved_once(self, name: str, number: Any, named: str) -> None:
        before = dict(MessageType.known)
        with pytest.raises(HandlerTableError, match=named):
            MessageType.reserve(name, number, Traits(local=True))
        assert MessageType.known == before
        own = MessageType.reserve("OWN", 999, Traits(local=True))
        assert (MessageType(999), own.traits.local) == (own, True)

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(KeyError, match="REPLICAT"):
            MessageType["REPLICAT"]

    def test_a_copy_is_the_type_itself(self) -> None:
        message = Message(MessageType.PING, to=2)
        assert copy.copy(message.type) is MessageType.PING
        assert copy.deepcopy(message).type is MessageType.PING

    def test_it_is_a_key_like_its_number(self) -> None:
        """A table is indexed by what came over the wire."""
        assert {MessageType.PING: "cell"}[5] == "cell"


class TestMembership:
    WHOLE = Membership(
        voters={1: "a:1", 2: "b:1"},
        observers={4: "d:1"},
        witnesses={5: "e:1"},
        outgoing={2, 3, 6},
        outgoing_witnesses={6},
        next_observers={3},
        addresses={3: "c:1"},
    )

    def test_roles_given_with_addresses_are_sets_of_ids(self) -> None:
        assert self.WHOLE.voters == frozenset({1, 2})
        assert self.WHOLE.addresses == {1: "a:1", 2: "b:1", 3: "c:1", 4: "d:1", 5: "e:1"}
        assert Membership(voters=[2, 1]) == Membership(voters=(1, 2))

    def test_witnesses_are_of_the_electorate_and_observers_are_not(self) -> None:
        """Thesis §4.2.1, §4.3 and §11.7.2."""
        assert self.WHOLE.electorate == (frozenset({1, 2, 5}), frozenset({2, 3, 6}))
        assert Membership(voters={1}).electorate == (frozenset({1}), frozenset())

    def test_everybody_is_who_receives_the_log(self) -> None:
        assert self.WHOLE.everybody == frozenset(range(1, 7))

    @pytest.mark.parametrize(
        ("replica", "voter", "witness", "state"),
        [
            pytest.param(1, True, False, State.FOLLOWER, id="a voter of the new half"),
            pytest.param(3, True, False, State.FOLLOWER, id="a voter of the old half, to be an observer"),
            pytest.param(4, False, False, State.OBSERVER, id="an observer"),
            pytest.param(5, False, True, State.WITNESS, id="a witness"),
            pytest.param(6, False, True, State.WITNESS, id="a witness of the old half"),
            pytest.param(9, False, False, State.FOLLOWER, id="a non-member"),
        ],
    )
    def test_each_has_its_role(self, replica: int, voter: bool, witness: bool, state: State) -> None:
        assert self.WHOLE.is_voter(replica) is voter
        assert self.WHOLE.is_witness(replica) is witness
        assert self.WHOLE.state_of(replica) is state

    def test_it_is_joint_while_there_is_an_old_half(self) -> None:
        assert self.WHOLE.joint
        assert not Membership(voters={1}).joint

    def test_the_addresses_that_were_given_are_not_changed(self) -> None:
        given = {3: "c:1"}
        Membership(voters={1: "a:1"}, addresses=given)
        assert given == {3: "c:1"}


def test_a_snapshot_of_nothing_is_false() -> None:
    assert not Snapshot()
    assert Snapshot(index=1, term=1)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        pytest.param(Message(MessageType.LOCAL_TICK), "0->0 LOCAL_TICK", id="nothing to say"),
        pytest.param(
            Message(
                MessageType.REPLICATE,
                to=2,
                sender=1,
                shard=7,
                term=3,
                log_index=5,
                log_term=2,
                commit=4,
                entries=[Entry(6, 3), Entry(7, 3)],
            ),
            "1->2 REPLICATE shard=7 term=3 log_index=5 log_term=2 commit=4 entries=2",
            id="entries are counted",
        ),
        pytest.param(
            Message(
                MessageType.REPLICATE_RESP, to=1, sender=2, log_index=5, reject=True, hint=4, hint_high=1
            ),
            "2->1 REPLICATE_RESP log_index=5 hint=4 hint_high=1 reject",
            id="a rejection",
        ),
        pytest.param(
            Message(
                MessageType.INSTALL_SNAPSHOT, to=2, sender=1, snapshot=Snapshot(9, 3, payload=bytes(10**6))
            ),
            "1->2 INSTALL_SNAPSHOT snapshot=9/3",
            id="a snapshot without its content",
        ),
        pytest.param(
            Message(MessageType.PING, payload="x" * 58),
            "0->0 PING payload=" + repr("x" * 58),
            id="the longest payload that is shown whole",
        ),
        pytest.param(
            Message(MessageType.PING, payload="x" * 59),
            "0->0 PING payload='" + "x" * 56 + "...",
            id="a longer one is cut",
        ),
    ],
)
def test_a_message_is_one_line_of_bounded_length(message: Message, line: str) -> None:
    assert str(message) == line


def test_the_numbers_on_disk_and_wire_stay_what_they_are() -> None:
    assert [(kind.name, kind.value) for kind in EntryKind if kind < EntryKind.FIRST_FREE] == [
        ("COMMAND", 0),
        ("NO_OP", 1),
        ("CONFIG_CHANGE", 2),
        ("SESSION", 3),
        ("METADATA", 4),
        ("ENCODED", 5),
        ("SETTLED", 6),
    ]
    assert [state.name for state in sorted(State)] == [
        "FOLLOWER",
        "PRE_CANDIDATE",
        "CANDIDATE",
        "LEADER",
        "OBSERVER",
        "WITNESS",
    ]
