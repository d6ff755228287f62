"""What a host knows of the life of others: the states and the evidence as tables."""

from typing import Any

import pytest
from drakkar.transport.connection import NobodyListens, _dialing_error
from drakkar.transport.frames import FrameError, FrameKind, FrameReader
from drakkar.transport.hello import ALIVE_FEATURE, Hello, Run
from drakkar.transport.liveness import (
    DEAD_TICKS,
    EVIDENCE_TICKS,
    SUSPECT_TICKS,
    HostState,
    Life,
    Liveness,
    RunId,
    decode_alive,
    encode_alive,
)

from tests.transport.support import hello

B, OTHER = "10.0.0.2:1", "10.0.0.3:1"
UNKNOWN, ALIVE, SUSPECT, DEAD = HostState
LETTERS = {UNKNOWN: "u", ALIVE: "A", SUSPECT: "s", DEAD: "D"}


def says(run: int = 1, *, address: str = B, host_id: str = "b", knows: bool = True) -> Hello:
    """What the host at B says of itself in its first run, or a later one."""
    nonces = tuple(range(run, 0, -1))
    features = frozenset({ALIVE_FEATURE} if knows else ())
    return hello("10.0.0.1:1", address=address, host_id=host_id, run=Run(run, nonces), features=features)


class Observer:
    """What one host knows of the one at B, and what it has told."""

    def __init__(self, *members: str) -> None:
        self.told: list[tuple[HostState, int]] = []
        self.gone: list[tuple[str, str, int]] = []
        self.why: list[str] = []
        self.lives = Liveness(self._changed, lambda *run: self.gone.append(run))
        self.lives.set_members(members or [B])
        self.calls: dict[str, object] = {}

    def _changed(self, event: Any) -> None:
        self.told.append((event.state, event.run))
        self.why.append(event.why)
        assert event.address == B

    @property
    def state(self) -> HostState:
        return self.lives.life(B).state

    def answered(self, number: int, run: int = 1) -> bool:
        return self.lives.answered(B, RunId.of(says(run)), number)


# ---- heartbeats


@pytest.mark.parametrize(
    ("answers", "states"),
    [
        pytest.param("1 2 3 4 5", "AAAAA", id="each is answered"),
        pytest.param("- - - - - - - - - - - - -", "uuuuuuuuuuuuu", id="none ever is"),
        pytest.param("1 - 3 - 5 - 7", "AAAAAAA", id="every second is lost"),
        pytest.param("1 - - 4 - - 7", "AAAAAAA", id="two in a row are lost"),
        pytest.param("1 - - - - 6 7", "AAAAsAA", id="four in a row are lost: three are noticed"),
        pytest.param("1 - - - - - - - - - - -", "AAAAsssssssD", id="it has ended"),
        pytest.param("1 - - - - - - - - - - - 13", "AAAAsssssssDA", id="it was cut off, and is back"),
        pytest.param(
            "1 - - - - 2 3 -", "AAAAssss", id="answers that come four ticks late make it no younger"
        ),
        pytest.param("1 - - - - 2,3,4,5,6 -", "AAAAsAA", id="what was held up comes all at once"),
        pytest.param("1 - 3,2 - - - -", "AAAAAAs", id="a newer one has overtaken an older one"),
        pytest.param("1 - - 2,4,3,1 - - - -", "AAAAAAAs", id="in any order"),
        pytest.param("1 1 1 1 1", "AAAAs", id="the same one again and again"),
        pytest.param("- - 1 2 3 4 5", "uuAAAAA", id="each takes two ticks"),
        pytest.param("- - - - 1 2 3 4", "uuuussss", id="each takes four ticks"),
        pytest.param("- 2 - - - -", "uAAAAs", id="heard for the first time in the second tick"),
    ],
)
def test_a_state_follows_from_the_newest_heartbeat_that_is_answered(answers: str, states: str) -> None:
    """Column by column: what is answered between two ticks, and the state after that."""
    b = Observer()
    b.lives.introduced(B, says())
    seen = ""
    for column in answers.split():
        b.lives.tick()
        for number in column.split(","):
            if number != "-":
                b.answered(int(number))
        seen += LETTERS[b.state]
    assert seen == states


def test_a_host_that_is_watched_only_is_judged_by_the_heartbeats_that_were_for_it() -> None:
    b = Observer("10.0.0.3:1")
    b.lives.watch(B)
    b.lives.introduced(B, says())
    seen = ""
    for _ in range(12):
        b.lives.tick()
        if not seen:
            b.answered(1)
        for _ in range(20):
            b.lives.tick(b.lives.members)
        seen += LETTERS[b.state]
    assert seen == "AAAAsssssssD"


@pytest.mark.parametrize("missed", [0, 2, 3])
def test_one_that_was_watched_and_becomes_a_member_has_missed_no_more_than_before(missed: int) -> None:
    b = Observer("10.0.0.3:1")
    b.lives.watch(B)
    b.lives.introduced(B, says())
    b.lives.tick()
    b.answered(1)
    for _ in range(missed):
        b.lives.tick()
        for _ in range(20):
            b.lives.tick(b.lives.members)
    b.lives.set_members([B])
    for _ in range(SUSPECT_TICKS - missed):
        assert b.state is ALIVE
        b.lives.tick()
    b.lives.tick()
    assert b.state is SUSPECT


def test_the_thresholds_are_those_of_the_page() -> None:
    """docs/transport.md, docs/operations.md and docs/metrics.md name them."""
    assert (SUSPECT_TICKS, DEAD_TICKS, EVIDENCE_TICKS) == (3, 10, 3)


def test_each_change_is_told_once_with_run_and_reason() -> None:
    b = Observer()
    b.lives.introduced(B, says(4))
    b.lives.tick()
    b.answered(1, run=4)
    for _ in range(20):
        b.lives.tick()
    b.answered(21, run=4)
    assert b.told == [(ALIVE, 4), (SUSPECT, 4), (DEAD, 4), (ALIVE, 4)]
    assert b.why == [
        "it answers",
        "it has not answered for 3 ticks",
        "it has not answered for 10 ticks",
        "it answers",
    ]


def test_only_what_is_newer_is_news() -> None:
    b = Observer()
    b.lives.introduced(B, says())
    for _ in range(5):
        b.lives.tick()
    assert [b.answered(number) for number in (3, 3, 2, 4, 1, 5)] == [True, False, False, True, False, True]


def test_an_answer_to_what_was_not_sent_is_malformed() -> None:
    b = Observer()
    b.lives.introduced(B, says())
    b.lives.tick()
    with pytest.raises(FrameError, match="heartbeat 2 is answered, and 1 was the last"):
        b.answered(2)
    assert b.state is UNKNOWN


def test_an_answer_of_another_run_is_none_of_this_one() -> None:
    b = Observer()
    b.lives.introduced(B, says(2))
    b.lives.tick()
    assert not b.answered(1, run=1)
    assert b.state is UNKNOWN
    assert b.answered(1, run=2)


def test_who_is_neither_a_member_nor_watched_has_no_state() -> None:
    b = Observer(OTHER)
    b.lives.introduced(B, says())
    b.lives.tick()
    assert not b.answered(1)
    assert b.lives.life(B) == Life(UNKNOWN, "b", 1)
    b.lives.lost(B)
    b.lives.refused(B)
    assert (b.told, b.gone) == ([], [])


def test_a_host_is_watched_until_the_last_who_watches_it_lets_go() -> None:
    b = Observer(OTHER)
    b.lives.watch(B)
    b.lives.watch(B)
    b.lives.introduced(B, says())
    b.lives.tick()
    b.answered(1)
    assert b.lives.unwatch(B)
    assert b.state is ALIVE
    assert b.lives.unwatch(B)
    assert b.state is UNKNOWN
    assert not b.lives.unwatch(B)
    assert b.lives.tracked == {OTHER}
    assert b.told == [(ALIVE, 1)], "that it is not looked at is no news of it"


def test_a_host_that_becomes_a_member_while_it_is_connected_is_known_at_once() -> None:
    b = Observer(OTHER)
    b.lives.introduced(B, says(3))
    b.lives.set_members([B])
    b.lives.tick()
    assert b.answered(1, run=3)
    assert b.told == [(ALIVE, 3)]


def test_states_are_counted_over_all_that_are_tracked() -> None:
    b = Observer(B, OTHER)
    b.lives.introduced(B, says())
    b.lives.tick()
    b.answered(1)
    assert b.lives.states() == {ALIVE: 1, UNKNOWN: 1}


def test_what_is_not_needed_any_more_is_forgotten() -> None:
    """Addresses without end may call."""
    b = Observer(OTHER)
    for port in range(100):
        link = object()
        b.lives.opened(link, says(address=f"10.9.9.9:{port}"), at_home=False)
        b.lives.ended(link)
        b.lives.introduced(f"10.8.8.8:{port}", says())
        b.lives.lost(f"10.8.8.8:{port}")
    assert b.lives._hosts == {}
    assert b.lives._callers == {}


# ---- evidence that a process has ended


def play(b: Observer, story: str) -> list[str]:
    """What happens to the connections with B, a word each. Return what the host did not expect."""
    lives = b.lives
    due: list[str] = []
    for word in story.split():
        what, _, which = word.partition(":")
        match what:
            case "reach":  # this host opens a connection
                lives.introduced(B, says(int(which or 1)))
            case "lose":
                lives.lost(B)
            case "call" | "claim":  # B does, or somebody in its name
                b.calls[which] = link = object()
                lives.opened(link, says(int(which[:1] or 1)), at_home=what == "call")
            case "end":
                if lives.ended(b.calls.pop(which)):
                    due.append(word)
            case "refuse":
                lives.refused(B)
            case "tick":
                lives.tick()
            case (
                "replace"
            ):  # another run than this has introduced itself at B, and these connections were given up
                _, count, nonce = RunId.of(says(int(which)))
                lives.replaced(B, "b", (count, nonce), list(b.calls.values()))
            case _:
                raise AssertionError(word)
    return due


@pytest.mark.parametrize(
    ("story", "gone"),
    [
        # -- both connections have ended, and nothing listens
        pytest.param("reach call end lose refuse", [1], id="its own connection ends first"),
        pytest.param("reach call lose end refuse", [1], id="its own connection ends last"),
        pytest.param("reach lose refuse", [1], id="it has never called"),
        pytest.param("reach call lose end tick tick tick refuse", [1], id="its listener was closed later"),
        pytest.param("reach call:1 call:1b end:1 lose end:1b refuse", [1], id="it had called twice"),
        pytest.param("reach:2 call:2 lose end:2 refuse", [2], id="a later run"),
        pytest.param("reach call lose end refuse refuse refuse", [1], id="it is told once"),
        # -- something is missing
        pytest.param("reach call lose end", [], id="a reset alone"),
        pytest.param("reach call lose end" + 12 * " tick", [], id="a timeout"),
        pytest.param("reach call lose refuse", [], id="its own connection is open"),
        pytest.param("reach call lose refuse end", [], id="it was open when nothing listened"),
        pytest.param("reach call lose refuse end refuse", [1], id="nothing listens after that either"),
        pytest.param("reach call end refuse", [], id="this host's own connection is open"),
        pytest.param("call end refuse", [], id="it was never reached"),
        pytest.param("refuse", [], id="nothing was ever heard of it"),
        pytest.param("reach call lose end tick tick tick tick refuse", [], id="that was long ago"),
        pytest.param("reach lose reach refuse", [], id="it was reached again"),
        pytest.param("reach lose call refuse", [], id="it has called again"),
        # -- what others say
        pytest.param("reach call lose end claim refuse", [1], id="a stranger claims to be it"),
        pytest.param("reach claim lose refuse", [], id="it is behind a NAT, and still calls"),
        pytest.param("reach claim lose end refuse", [1], id="it is behind a NAT, and calls no more"),
        pytest.param("reach:1 lose call:2 refuse", [1], id="its next run calls already"),
        # -- another run
        pytest.param("reach:1 call:1 replace:1 lose reach:2", [1], id="it has started again"),
        pytest.param("reach:1 lose replace:1 reach:2", [1], id="its connections had ended before"),
        pytest.param("call:1 replace:1", [1], id="it was never reached"),
        pytest.param("reach:1 lose refuse replace:1 reach:2", [1], id="and nothing had listened: told once"),
        pytest.param("reach:2 replace:1", [], id="a run of which nothing was heard since this host started"),
        pytest.param("reach:1 lose replace:1 reach:2 lose refuse", [1, 2], id="each run is told"),
    ],
)
def test_a_run_is_gone_when_all_the_evidence_is_there(story: str, gone: list[int]) -> None:
    b = Observer()
    play(b, story)
    assert b.gone == [(B, "b", run) for run in gone]
    assert (b.state is DEAD) == (bool(gone) and b.lives.life(B).run == gone[-1])


@pytest.mark.parametrize(
    ("story", "due"),
    [
        ("reach call lose end", ["end"]),
        ("reach call end lose", []),
        ("reach call:1 call:1b lose end:1 end:1b", ["end:1b"]),
        ("reach:2 call:1 lose end:1", []),
        ("call end", []),
        ("reach call:1 lose claim:1b end:1b end:1", ["end:1"]),
        ("reach lose refuse call end", []),
    ],
)
def test_a_host_is_dialed_at_once_when_its_last_connection_has_ended(story: str, due: list[str]) -> None:
    assert play(Observer(), story) == due


def test_a_run_in_whose_place_another_one_is_ends_with_its_last_connection() -> None:
    """One that was not given up, as it came from elsewhere."""
    b = Observer()
    play(b, "reach:1 claim:1 lose")
    claim = b.calls.pop("1")
    play(b, "replace:1")
    assert b.gone == []
    b.lives.ended(claim)
    assert b.gone == [(B, "b", 1)]


def test_a_host_that_was_wrongly_taken_for_gone_is_alive_again() -> None:
    b = Observer()
    play(b, "tick reach call")
    b.answered(1)
    play(b, "lose end refuse")
    assert b.lives.is_gone(says(1))
    assert not b.lives.is_gone(says(2))
    assert not b.lives.is_gone(says(1, host_id="another"))
    play(b, "call")
    assert b.lives.is_gone(says(1)), "a connection may have waited in the kernel since before the end"
    b.lives.returned(says(1))
    assert not b.lives.is_gone(says(1))
    assert b.told == [(ALIVE, 1), (DEAD, 1), (ALIVE, 1)]
    play(b, "tick tick tick tick")
    assert b.state is SUSPECT, "it is to answer from now on"


@pytest.mark.parametrize("knows", [True, False], ids=["with heartbeats", "a host of 4.1"])
def test_a_host_that_is_reached_again_in_the_same_run_was_not_gone(knows: bool) -> None:
    b = Observer()
    b.lives.introduced(B, says(knows=knows))
    play(b, "lose refuse")
    b.lives.introduced(B, says(knows=knows))
    assert not b.lives.is_gone(says())
    assert b.state is (ALIVE if knows else UNKNOWN)


def test_a_proxy_that_refuses_again_and_again_disturbs_once_a_run() -> None:
    b = Observer()
    play(b, "reach lose refuse reach lose refuse reach lose refuse")
    assert b.gone == [(B, "b", 1)]
    assert b.state is DEAD
    play(b, "reach:2 lose refuse")
    assert b.gone == [(B, "b", 1), (B, "b", 2)]


def test_another_host_at_the_address_is_no_evidence_that_the_last_one_has_ended() -> None:
    b = Observer()
    play(b, "tick reach")
    b.answered(1)
    play(b, "lose")
    b.lives.introduced(B, says(host_id="another"))
    assert b.gone == []
    assert b.told == [(ALIVE, 1), (DEAD, 1), (UNKNOWN, 1)]
    assert b.lives.life(B) == Life(UNKNOWN, "another", 1)


def test_a_restart_is_told_as_the_end_of_one_run_and_the_life_of_the_next() -> None:
    b = Observer()
    play(b, "tick reach:1 call:1")
    b.answered(1)
    play(b, "replace:1 lose reach:2")
    assert not b.answered(1, run=1), "what the old run answered is none of the new one"
    assert b.answered(1, run=2)
    assert b.told == [(ALIVE, 1), (DEAD, 1), (UNKNOWN, 2), (ALIVE, 2)]
    assert b.why[1] == "it has introduced itself in another run"


def test_heartbeats_do_not_bring_back_what_is_gone() -> None:
    b = Observer()
    play(b, "tick reach")
    b.answered(1)
    play(b, "lose refuse tick")
    assert not b.answered(2)
    play(b, "tick tick tick")
    assert b.told == [(ALIVE, 1), (DEAD, 1)]


# ---- what is no refusal


def _failed(*causes: OSError) -> OSError:
    """As trio says that it could not connect to any address of a name."""
    error = OSError("all attempts to connect failed")
    error.__cause__ = ExceptionGroup("all attempts", list(causes))
    return error


REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        pytest.param(_failed(REFUSED), True, id="its only address refuses"),
        pytest.param(_failed(REFUSED, REFUSED), True, id="all of its addresses refuse"),
        pytest.param(_failed(REFUSED, OSError(113, "No route")), False, id="one of them leads nowhere"),
        pytest.param(_failed(OSError(113, "No route to host")), False, id="no route"),
        pytest.param(_failed(OSError(101, "Network is unreachable")), False, id="no network"),
        pytest.param(_failed(TimeoutError(110, "Connection timed out")), False, id="a timeout"),
        pytest.param(_failed(ConnectionResetError(104, "Connection reset by peer")), False, id="a reset"),
        pytest.param(OSError(-2, "Name or service not known"), False, id="no such name"),
        pytest.param(REFUSED, True, id="without a group"),
    ],
)
def test_only_a_refusal_by_all_addresses_is_one(error: OSError, refused: bool) -> None:
    told = _dialing_error(error)
    assert isinstance(told, NobodyListens) == refused
    assert str(told)


# ---- frames


def test_a_heartbeat_has_24_bytes_and_comes_back_as_it_was_sent() -> None:
    frame = encode_alive(1 << 63)
    assert len(frame) == 24
    ((kind, body),) = FrameReader().feed(frame)
    assert kind == FrameKind.ALIVE == 15
    assert decode_alive(body) == 1 << 63


@pytest.mark.parametrize("size", [0, 7, 9, 64])
def test_a_heartbeat_of_another_length_is_malformed(size: int) -> None:
    with pytest.raises(FrameError, match=f"has {size} bytes, and not 8"):
        decode_alive(memoryview(bytes(size)))
