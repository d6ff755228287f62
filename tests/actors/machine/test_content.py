"""What a snapshot of a state machine holds: the facts beside it, the sessions, and the state behind them."""

import io

import pytest
from drakkar.actors.machine.content import Facts, read_sessions, with_sessions
from drakkar.actors.machine.sessions import REGISTER, SessionTable, encode_request
from drakkar.handlers.errors import CorruptData


def test_facts_come_back_as_they_were_beside_others():
    facts = Facts(shard_id=7, machine_index=12, has_content=False)
    assert facts.encode() == {"shard": 7, "machine_index": 12, "content": False}
    assert Facts.decode({"export": {}, **facts.encode()}) == facts


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"shard": 7, "machine_index": 12},
        {"shard": "7", "machine_index": 12, "content": True},
        {"shard": 7, "machine_index": -1, "content": True},
        {"shard": 7, "machine_index": 12, "content": 1},
    ],
)
def test_what_is_missing_or_of_another_type_is_refused_with_the_value(facts):
    with pytest.raises(CorruptData, match="do not say whose it is"):
        Facts.decode(facts)


def content():
    sessions = SessionTable()
    sessions.apply(encode_request(5, REGISTER, 0, b""), lambda command: None)
    sink = io.BytesIO()
    with_sessions(sessions.encode(), lambda sink: sink.write(b"state"))(sink)
    return sessions, sink.getvalue()


def test_the_state_follows_the_sessions():
    sessions, written = content()
    source = io.BytesIO(written)
    assert read_sessions(source).encode() == sessions.encode()
    assert source.read() == b"state"


def test_a_content_that_is_cut_within_its_sessions_is_refused():
    written = content()[1][:-5]
    for size in range(len(written)):
        with pytest.raises(CorruptData, match=r"ends \d+ bytes before its state begins"):
            read_sessions(io.BytesIO(written[:size]))


def test_sessions_that_say_they_are_huge_are_not_read():
    with pytest.raises(CorruptData, match="its sessions take 281474976710656 bytes"):
        read_sessions(io.BytesIO((1 << 48).to_bytes(8, "big")))
