"""What a snapshot holds: the facts beside it, the sessions, the extensions' state, and that of the state machine behind them."""

import io

import cbor2
import pytest
from drakkar.actors.machine.content import (
    Facts,
    names_in,
    read_extensions,
    read_sessions,
    whole_content,
    write_extensions,
)
from drakkar.actors.machine.sessions import REGISTER, SessionTable, encode_request
from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import CorruptData


def test_facts_come_back_as_they_were_beside_others():
    facts = Facts(shard_id=7, machine_index=12, has_content=False)
    assert facts.encode() == {"shard": 7, "machine_index": 12, "content": False}
    assert Facts.decode({"export": {}, **facts.encode()}) == facts


@pytest.mark.parametrize("has_content", [True, False])
def test_extensions_are_named_only_where_there_are_some(has_content):
    assert "extensions" not in Facts(7, 12, has_content).encode()
    facts = Facts(7, 12, has_content, extensions=("audit", "court"))
    assert facts.encode()["extensions"] == ["audit", "court"]
    assert Facts.decode({"export": {}, **facts.encode()}) == facts


def decoded_by_the_version_without_extensions(facts):
    """As `Facts.decode` was before there were extensions."""
    shard_id, machine_index, has_content = (facts.get(key) for key in ("shard", "machine_index", "content"))
    if not (is_whole(shard_id) and is_whole(machine_index) and type(has_content) is bool):
        raise CorruptData(f"the facts of a snapshot are {facts!r:.200}, and do not say whose it is")
    return shard_id, machine_index, has_content


@pytest.mark.parametrize("has_content", [True, False])
def test_a_version_without_extensions_refuses_their_snapshots_and_takes_all_others(has_content):
    """It would take their part for the state machine's state, and lead one day without it."""
    plain, extended = Facts(7, 12, has_content), Facts(7, 12, has_content, extensions=("audit",))
    assert decoded_by_the_version_without_extensions(plain.encode()) == (7, 12, has_content)
    with pytest.raises(CorruptData, match="do not say whose it is"):
        decoded_by_the_version_without_extensions(extended.encode())


@pytest.mark.parametrize("names", ["audit", {"audit": 1}, [7], None])
def test_extensions_that_are_no_list_of_names_are_refused(names):
    with pytest.raises(CorruptData, match="which is no list of names"):
        Facts.decode({**Facts(7, 12).encode(), "extensions": names})


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"shard": 7, "machine_index": 12},
        {"shard": "7", "machine_index": 12, "content": True},
        {"shard": 7, "machine_index": -1, "content": True},
        {"shard": 7, "machine_index": 12, "content": 1},
        {"shard": 7, "machine_index": 12, "content": True, "extensions": ["audit"]},
    ],
)
def test_what_is_missing_or_of_another_type_is_refused_with_the_value(facts):
    with pytest.raises(CorruptData, match="do not say whose it is"):
        Facts.decode(facts)


SAVED = cbor2.dumps({"court": b"guilty", "audit": b"seen 3"})


def content(extensions=b""):
    sessions = SessionTable()
    sessions.apply(encode_request(5, REGISTER, 0, b""), lambda command: None)
    sink = io.BytesIO()
    whole_content(sessions.encode(), lambda sink: sink.write(b"state"))(sink, extensions)
    return sessions, sink.getvalue()


def test_the_state_follows_the_sessions():
    sessions, written = content()
    source = io.BytesIO(written)
    assert read_sessions(source).encode() == sessions.encode()
    assert source.read() == b"state"


def test_the_extensions_stand_between_the_sessions_and_the_state():
    sessions, written = content(SAVED)
    source = io.BytesIO(written)
    assert read_sessions(source).encode() == sessions.encode()
    assert read_extensions(source) == SAVED
    assert source.read() == b"state"
    assert names_in(SAVED) == ("audit", "court")
    assert names_in(b"") == ()


def test_the_extensions_of_a_state_machine_on_disk_stand_alone():
    sink = io.BytesIO()
    write_extensions(sink, b"")
    assert sink.getvalue() == b""
    write_extensions(sink, SAVED)
    sink.seek(0)
    assert (read_extensions(sink), sink.read()) == (SAVED, b"")


def test_extensions_that_say_they_are_huge_or_are_cut_are_not_read():
    with pytest.raises(CorruptData, match="its extensions take 281474976710656 bytes"):
        read_extensions(io.BytesIO((1 << 48).to_bytes(8, "big")))
    with pytest.raises(CorruptData, match="ends 2 bytes before its state begins"):
        read_extensions(io.BytesIO((5).to_bytes(8, "big") + b"abc"))


def test_a_content_that_is_cut_within_its_sessions_is_refused():
    written = content()[1][:-5]
    for size in range(len(written)):
        with pytest.raises(CorruptData, match=r"ends \d+ bytes before its state begins"):
            read_sessions(io.BytesIO(written[:size]))


def test_sessions_that_say_they_are_huge_are_not_read():
    with pytest.raises(CorruptData, match="its sessions take 281474976710656 bytes"):
        read_sessions(io.BytesIO((1 << 48).to_bytes(8, "big")))
