"""What replicas remember of their clients: each row of the protocol, and the same on all of them (thesis §6.3)."""

import cbor2
import pytest
from drakkar.actors.machine import compression, sessions
from drakkar.actors.machine.sessions import (
    MAX_RESULTS,
    REGISTER,
    UNREGISTER,
    SessionTable,
    encode_request,
)
from drakkar.handlers.errors import (
    ConfigError,
    CorruptData,
    Refused,
    ResultLost,
    SessionExpired,
    SessionRefused,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = b"a command of many words, most of which come again and again, " * 20


class Machine:
    """Notes what it applied. The results tell the first time from the second."""

    def __init__(self):
        self.applied = []

    def apply(self, command):
        self.applied.append(command)
        return len(self.applied), command


class Shard:
    """One replica's state."""

    def __init__(self, capacity=3):
        self.table = SessionTable(capacity)
        self.machine = Machine()

    @property
    def applied(self):
        return self.machine.applied

    def do(self, client, series, responded_to=0, command=None, *, encoded=False):
        if command is None:
            command = b"" if series >= REGISTER else b"%d" % series
        request = encode_request(client, series, responded_to, command, encoded=encoded)
        return self.table.apply(request, self.machine.apply)

    def open(self, *clients):
        for client in clients:
            assert self.do(client, REGISTER) == client
        return self

    def order(self):
        """The clients, those that will be forgotten first in front."""
        return [client for client, _, _ in cbor2.loads(self.table.encode())[2]]


def refused(result, kind=SessionRefused, *, outcome_known=False):
    return type(result) is kind and result.outcome_known is outcome_known


# -- the rows of the protocol


def test_to_register_gives_the_clients_id_and_nothing_else_is_applied():
    shard = Shard()
    assert shard.do(7, REGISTER) == 7
    assert 7 in shard.table
    assert shard.applied == []


def test_a_known_id_is_not_registered_again_and_keeps_what_it_had():
    shard = Shard().open(7)
    first = shard.do(7, 1)
    assert refused(shard.do(7, REGISTER), outcome_known=True)
    assert shard.do(7, 1) == first
    assert len(shard.applied) == 1


def test_an_unregistered_session_is_forgotten_with_its_results():
    shard = Shard().open(7)
    shard.do(7, 1)
    assert shard.do(7, UNREGISTER) == 7
    assert refused(shard.do(7, 1), SessionExpired)
    assert refused(shard.do(7, UNREGISTER), SessionExpired)
    assert (len(shard.table), shard.table.kept_bytes) == (0, 0)
    assert len(shard.applied) == 1


def test_a_command_of_an_unknown_session_is_not_applied():
    shard = Shard()
    assert refused(shard.do(7, 1), SessionExpired)
    assert shard.applied == []


def test_a_command_is_applied_once_and_its_first_result_is_the_one():
    shard = Shard().open(7)
    assert [shard.do(7, 1) for _ in range(3)] == [(1, b"1")] * 3
    assert shard.applied == [b"1"]


def test_what_the_client_has_received_is_given_up_and_not_applied_again():
    shard = Shard().open(7)
    shard.do(7, 1)
    shard.do(7, 2, responded_to=1)
    assert refused(shard.do(7, 1))
    assert shard.applied == [b"1", b"2"]


def test_an_old_request_takes_no_receipt_back():
    shard = Shard().open(7)
    shard.do(7, 1)
    shard.do(7, 2, responded_to=1)
    shard.do(7, 2, responded_to=0)
    assert refused(shard.do(7, 1, responded_to=0))
    assert shard.applied == [b"1", b"2"]


def test_a_request_with_a_receipt_for_itself_is_not_applied():
    shard = Shard().open(7)
    assert refused(shard.do(7, 1, responded_to=1))
    assert shard.applied == []


def test_results_are_kept_until_each_is_confirmed_in_any_order():
    shard = Shard().open(7)
    third, first = shard.do(7, 3), shard.do(7, 1)
    assert (shard.do(7, 1), shard.do(7, 3)) == (first, third)
    shard.do(7, 4, responded_to=2)
    assert refused(shard.do(7, 1, responded_to=2))
    assert shard.do(7, 3, responded_to=2) == third


def test_another_command_under_the_same_series_is_refused():
    """The protocol would answer it with the first one's result, and it would be lost silently."""
    shard = Shard().open(7)
    shard.do(7, 1, command=b"mine")
    assert refused(shard.do(7, 1, command=b"of another client"))
    assert shard.applied == [b"mine"]


def test_a_command_is_the_same_however_it_travels():
    (packed,), _ = compression.encode((TEXT,))
    assert packed != TEXT
    shard = Shard().open(7)
    first = shard.do(7, 1, command=packed, encoded=True)
    assert first == (1, TEXT)
    assert shard.do(7, 1, command=TEXT) == first
    assert shard.do(7, 1, command=packed, encoded=True) == first


def test_sessions_know_nothing_of_one_another():
    shard = Shard().open(1, 2)
    assert shard.do(1, 1) == (1, b"1")
    assert shard.do(2, 1) == (2, b"1")
    assert shard.do(1, 1) == (1, b"1")


# -- who is forgotten


def test_the_session_that_was_not_used_for_longest_makes_room():
    """P7."""
    shard = Shard().open(1, 2, 3)
    shard.do(1, 1)
    shard.open(4)
    assert shard.order() == [3, 1, 4]
    shard.open(5)
    assert shard.order() == [1, 4, 5]


@pytest.mark.parametrize(
    ("request_", "used"),
    [
        pytest.param((1, 2, 1), True, id="a command"),
        pytest.param((1, 1), True, id="a command that comes again"),
        pytest.param((1, 1, 1), True, id="a command that is given up"),
        pytest.param((1, REGISTER), True, id="a second registration"),
        pytest.param((9, 1), False, id="a command of a session that is none"),
        pytest.param((9, UNREGISTER), False, id="the end of a session that is none"),
    ],
)
def test_what_finds_a_session_uses_it(request_, used):
    shard = Shard().open(1)
    shard.do(1, 1)
    shard.open(2)
    shard.do(*request_)
    assert shard.order() == ([2, 1] if used else [1, 2])


def test_results_that_go_with_a_session_leave_room_for_others(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_KEPT_BYTES", 5)
    shard = Shard(capacity=1).open(1)
    assert shard.do(1, 1) == shard.do(1, 1) == (1, b"1")  # takes 5 bytes
    shard.open(2)
    assert shard.table.kept_bytes == 0
    assert shard.do(2, 1) == shard.do(2, 1)


# -- bounds


def test_a_session_keeps_so_many_results_and_refuses_more_until_some_are_received():
    shard = Shard().open(7)
    for series in range(1, MAX_RESULTS + 1):
        shard.do(7, series)
    assert refused(shard.do(7, MAX_RESULTS + 1), outcome_known=True)
    assert len(shard.applied) == MAX_RESULTS
    assert shard.do(7, 1) == (1, b"1")
    assert shard.do(7, MAX_RESULTS + 1, responded_to=1) == (MAX_RESULTS + 1, b"%d" % (MAX_RESULTS + 1))


@pytest.mark.parametrize("result", [{1, 2}, bytes(2 << 20)], ids=["of a strange type", "too large"])
def test_a_result_that_cannot_be_kept_is_for_the_first_request_only(result):
    shard = Shard().open(7)
    shard.machine.apply = lambda command: shard.applied.append(command) or result
    assert shard.do(7, 1) == result
    for _ in range(2):
        assert refused(shard.do(7, 1), ResultLost)
        shard.table = SessionTable.decode(shard.table.encode())
    assert shard.applied == [b"1"]


def test_the_results_of_all_sessions_share_a_bound_and_each_is_applied_once_all_the_same(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_KEPT_BYTES", 5)
    shard = Shard().open(1, 2)
    assert shard.do(1, 1) == (1, b"1")
    assert shard.do(2, 1) == (2, b"1")
    assert refused(shard.do(2, 1), ResultLost)
    assert shard.do(1, 1) == (1, b"1")
    assert len(shard.applied) == 2


def test_a_refusal_is_the_outcome_of_its_command_also_after_a_snapshot():
    shard, told = Shard().open(7), []

    def refuse(command):
        told.append(command)
        return Refused("no")

    request = encode_request(7, 1, 0, b"1")
    answers = [shard.table.apply(request, refuse) for _ in range(2)]
    shard.table = SessionTable.decode(shard.table.encode())
    answers.append(shard.table.apply(request, refuse))
    assert [(type(answer), str(answer)) for answer in answers] == [(Refused, "no")] * 3
    assert told == [b"1"]
    assert shard.do(7, 2, responded_to=1) == (1, b"2")


def test_a_result_that_cannot_be_kept_is_told_of_once(caplog):
    shard = Shard().open(7)
    for series in (1, 2):
        shard.table.apply(encode_request(7, series, 0, b"1"), lambda _: {1, 2})
    (told,) = caplog.messages
    assert "the result of command 1 of the session 7 cannot be kept" in told
    assert "of type 'set'" in told


def test_an_exception_of_the_state_machine_comes_through_and_nothing_is_kept():
    shard = Shard().open(7)

    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shard.table.apply(encode_request(7, 1, 0, b"1"), fail)
    assert shard.do(7, 1) == (1, b"1")


# -- against a model

CLIENTS = st.integers(1, 5)
COMMANDS = st.tuples(CLIENTS, st.integers(1, 6), st.integers(0, 6), st.sampled_from([b"a", b"b"]))
REQUESTS = st.one_of(
    COMMANDS,
    st.tuples(CLIENTS, st.sampled_from([REGISTER, REGISTER, UNREGISTER]), st.just(0), st.just(b"")),
)


class Model:
    """The protocol's table, as simple as can be: a list of sessions, and everything that was ever received."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.sessions = []  # [client, highest receipt, {series: (command, result)}]
        self.count = 0

    def do(self, client, series, responded_to, command):
        """The result, or the class of the refusal."""
        found = next((each for each in self.sessions if each[0] == client), None)
        if found is not None:
            self.sessions.remove(found)
        if series == UNREGISTER:
            return SessionExpired if found is None else client
        if series == REGISTER:
            self.sessions = [*self.sessions, found or [client, 0, {}]][-self.capacity :]
            return client if found is None else SessionRefused
        if found is None:
            return SessionExpired
        self.sessions.append(found)
        found[1] = max(found[1], responded_to)
        if series <= found[1]:
            return SessionRefused
        if series not in found[2]:
            self.count += 1
            found[2][series] = command, (self.count, command)
        first, result = found[2][series]
        return result if first == command else SessionRefused


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(REQUESTS, st.booleans()), max_size=60))
def test_any_requests_are_answered_as_the_protocol_says_and_alike_on_all_replicas(steps):
    shard, other, model = Shard(), Shard(), Model(3)
    for request, restored in steps:
        if restored:  # from a snapshot, which the other replica did not need
            shard.table = SessionTable.decode(shard.table.encode())
        result = shard.do(*request)
        answer = type(result) if isinstance(result, SessionRefused) else result
        assert answer == model.do(*request)
        other.do(*request)
        assert shard.table.encode() == other.table.encode()
        assert shard.table.kept_bytes == other.table.kept_bytes
    assert shard.order() == [client for client, _, _ in model.sessions]
    assert len(shard.applied) == model.count


# -- as bytes


def test_the_bytes_of_requests_and_tables_stay_what_they_are():
    """Logs and snapshots are read by later versions; and no hash, clock or address may have a part in them."""
    assert encode_request(2, 3, 1, b"x", encoded=True).hex() == "01" + f"{2:016x}{3:016x}{1:016x}" + "78"
    shard = Shard().open(2, 1)
    shard.do(2, 2, command=b"b")
    shard.do(2, 1, command=b"a")
    a, b = "27c35e6e9373877f29e562464e46497e", "96172b4c53372cd10faddc821bfe0318"
    kept = [
        [1, bytes.fromhex(a), cbor2.dumps([1, 2, b"a"])],
        [2, bytes.fromhex(b), cbor2.dumps([1, 1, b"b"])],
    ]
    assert shard.table.encode() == cbor2.dumps([1, 3, [[1, 0, []], [2, 0, kept]]])


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes([0]) + bytes(23), id="a byte too few"),
        pytest.param(b"\x02" + encode_request(1, 1, 0, b"x")[1:], id="an unknown encoding"),
        pytest.param(bytes(17) + bytes(8), id="client and series 0"),
        pytest.param(b"\0" + bytes(8) + b"\1" * 8 + bytes(8), id="client 0"),
        pytest.param(encode_request(1, 1, 0, b"")[:9] + bytes(16), id="series 0"),
        pytest.param(encode_request(1, REGISTER, 0, b"") + b"x", id="a registration with a command"),
        pytest.param(encode_request(1, UNREGISTER, 0, b"")[:-1] + b"\1", id="an end with a receipt"),
        pytest.param(
            b"\1" + encode_request(1, 1, 0, b"no such thing")[1:], id="a command that is not encoded"
        ),
    ],
)
def test_a_payload_that_is_no_request_is_corrupt_and_changes_nothing(payload):
    shard = Shard().open(1)
    before = shard.table.encode()
    with pytest.raises(CorruptData):
        shard.table.apply(payload, shard.machine.apply)
    assert shard.table.encode() == before
    assert shard.applied == []


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ((0, 1, 0, b"x"), "client=0"),
        ((1, 0, 0, b"x"), "series=0"),
        ((1 << 64, 1, 0, b"x"), f"client={1 << 64}"),
        (("7", 1, 0, b"x"), "client='7'"),
        ((1, 1, -1, b"x"), "responded_to=-1"),
        ((1, REGISTER, 0, b"x"), "session request"),
        ((1, UNREGISTER, 1, b""), "session request"),
    ],
)
def test_a_request_that_would_be_none_is_not_made(request_, named):
    with pytest.raises(ConfigError, match=named):
        encode_request(*request_)


def row(series=1, digest=bytes(16), result=b"\1"):
    return [series, digest, result]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([], id="nothing"),
        pytest.param([2, 3, []], id="another version"),
        pytest.param([1, 0, []], id="no capacity"),
        pytest.param([True, 3, []], id="a version that is no number"),
        pytest.param([1, 3, [[0, 0, []]]], id="client 0"),
        pytest.param([1, 3, [[1, 0, []], [1, 0, []]]], id="a client twice"),
        pytest.param([1, 1, [[1, 0, []], [2, 0, []]]], id="more than its capacity"),
        pytest.param([1, 3, [[1, 1, [row(1)]]]], id="a result that was received"),
        pytest.param([1, 3, [[1, 0, [row(2), row(1)]]]], id="results out of order"),
        pytest.param([1, 3, [[1, 0, [row(REGISTER)]]]], id="a result of a registration"),
        pytest.param([1, 3, [[1, 0, [row(digest=bytes(15))]]]], id="a digest too short"),
        pytest.param([1, 3, [[1, 0, [row(result=b"\x80")]]]], id="a result that is none"),
        pytest.param([1, 3, [[1, 0, [row(result=1)]]]], id="a result that is no bytes"),
        pytest.param([1, 3, [[1, 0, [row(n + 1) for n in range(65)]]]], id="too many results"),
        pytest.param([1, 3, [[1, 0]]], id="a session without its results"),
    ],
)
def test_a_table_that_cannot_be_is_corrupt(value):
    with pytest.raises(CorruptData):
        SessionTable.decode(cbor2.dumps(value))


def test_no_table_loses_its_end_unnoticed():
    shard = Shard().open(1, 2)
    shard.do(1, 1)
    data = shard.table.encode()
    for end in range(len(data)):
        with pytest.raises(CorruptData):
            SessionTable.decode(data[:end])
    with pytest.raises(CorruptData):
        SessionTable.decode(data + b"\0")


@pytest.mark.parametrize("capacity", [0, -1, 1 << 32])
def test_a_capacity_out_of_bounds_is_refused(capacity):
    with pytest.raises(ConfigError):
        SessionTable(capacity)
