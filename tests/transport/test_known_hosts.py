"""Which run of a host is let in: the host itself, restarted, and not a copy of its data directory."""

from collections.abc import Collection
from typing import Any

import pytest
import trio
from drakkar.transport import known_hosts
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import RefusedError, Run, decode_reason, encode_hello
from drakkar.transport.known_hosts import KnownHosts, RunMemory
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.options import Options

from tests.transport.support import (
    FakePeer,
    Host,
    heartbeat,
    hello,
    listening,
    on_loop,
    running,
    until,
    warnings,
)

QUICK = Options(backoff_first=0.01, backoff_last=0.05, backoff_refused=0.02, run_timeout=0.1)


def start(*nonces: int, count: int | None = None) -> Run:
    """The run with these nonces, the newest first."""
    return Run(len(nonces) if count is None else count, nonces)


@pytest.mark.parametrize(
    ("run", "follows"),
    [
        pytest.param(start(3, 2, 1), True, id="the same run"),
        pytest.param(start(4, 3, 2, 1), True, id="the next one"),
        pytest.param(start(9, 8, count=40), True, id="so much later that it cannot be told"),
        pytest.param(start(2, 1), False, id="an older one"),
        pytest.param(start(7, 2, 1), False, id="as many starts, and another last one"),
        pytest.param(start(9, 8, 7, 2, 1), False, id="more starts, but not after that one"),
    ],
)
def test_which_runs_follow_a_run(run: Run, follows: bool) -> None:
    assert run.follows(3, 3) == follows


# ---- callers


async def refused(host: Host, **fields: Any) -> str:
    """Introduce oneself and be refused; return why."""
    fake = await FakePeer.dial(host)
    await fake.send(encode_hello(hello(host.address, **fields)))
    frame = await fake.next_frame()
    assert frame.kind == FrameKind.REFUSED
    await fake.closed()
    return decode_reason(frame.body)


async def delivers(host: Host, fake: FakePeer, number: int) -> None:
    await fake.send(encode_messages([heartbeat(number)])[0])
    await until(lambda: heartbeat(number) in host.received)


async def answer_pings(fake: FakePeer) -> None:
    while True:
        frame = await fake.next_frame()
        if frame.kind == FrameKind.PING:
            await fake.send(encode_frame(FrameKind.PONG, bytes(frame.body)))


@on_loop
async def test_a_host_that_restarts_takes_the_place_of_its_last_run_which_is_silent() -> None:
    a = Host(options=QUICK)
    async with running(a):
        old = await FakePeer.introduced(a, run=start(1))
        new = await FakePeer.introduced(a, run=start(2, 1))
        await old.closed()
        await delivers(a, new, 2)
    assert a.counters.refused == 0


@on_loop
async def test_a_newcomer_is_refused_where_the_last_run_still_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = Host(options=QUICK)
    async with running(a) as nursery:
        original = await FakePeer.introduced(a, run=start(1))
        nursery.start_soon(answer_pings, original)
        for _ in range(3):
            why = await refused(a, run=start(2, 1))
        assert "run 2 of the host" in why
        assert "is not its run 1, which still answers" in why
        assert "is a copy" in why
        await delivers(a, original, 7)
    assert a.counters.refused == 3
    assert len(warnings(caplog)) == 1, "once a minute is enough"


@on_loop
async def test_a_copy_with_another_address_is_refused_too() -> None:
    a = Host(options=QUICK)
    async with running(a) as nursery:
        original = await FakePeer.introduced(a, run=start(1), host_id="h", address="10.0.0.1:1")
        nursery.start_soon(answer_pings, original)
        why = await refused(a, run=start(2, 1), host_id="h", address="10.0.0.2:2")
        assert "the host h at 10.0.0.2:2" in why


@pytest.mark.parametrize(
    "run", [start(2, 1), start(7, 2, 1), start(8, 7, 2, 1)], ids=["older", "equal", "beyond"]
)
@on_loop
async def test_a_restored_copy_is_refused_though_the_host_is_gone(run: Run) -> None:
    """Starting it again and again does not help."""
    a = Host(options=QUICK)
    async with running(a):
        original = await FakePeer.introduced(a, run=start(3, 2, 1))
        await original.stream.aclose()
        assert "does not follow its run 3, which was heard of before" in await refused(a, run=run)
        again = await FakePeer.introduced(a, run=start(4, 3, 2, 1))
        await delivers(a, again, 1)


@on_loop
async def test_a_copy_of_the_host_that_it_dials_is_refused() -> None:
    a = Host(options=QUICK)
    a.transport.identify("h", start(2, 1))
    async with running(a):
        why = await refused(a, run=start(3, 2, 1), host_id="h")
        assert "has the identity of the host that it reached" in why
        a.send(a, heartbeat(3))
        await until(lambda: heartbeat(3) in a.received)


@on_loop
async def test_runs_that_were_heard_of_before_a_restart_are_remembered() -> None:
    written: list[dict[str, tuple[int, int, str]]] = []
    a = Host(options=QUICK)
    a.transport.identify("own", start(1), on_change=written.append)
    async with running(a):
        for _ in range(2):
            await FakePeer.introduced(a, run=start(2, 1), host_id="h")
    assert written == [{"h": (2, 2, "10.9.9.9:1")}]
    b = Host(options=QUICK)
    b.transport.identify("own", start(2, 1), written[0])
    async with running(b):
        assert "does not follow its run 2" in await refused(b, run=start(7, 1), host_id="h")
        await FakePeer.introduced(b, run=start(3, 2, 1), host_id="h")


# ---- callees


@on_loop
async def test_a_caller_finds_the_copy_too_and_both_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """The original has dialed this host, and this host reaches the copy: its address was moved, say."""
    a, copy = Host(options=QUICK), Host(options=QUICK)
    copy.transport.identify("h", start(2, 1))
    async with running(a, copy) as nursery:
        original = await FakePeer.introduced(a, run=start(1), host_id="h", address="10.0.0.1:1")
        nursery.start_soon(answer_pings, original)
        a.send(copy)
        await until(lambda: copy.counters.refused)
        await until(lambda: a.counters.refused)
        assert not a.connected(copy)
    told = [text for text in warnings(caplog) if "is not its run 1, which still answers" in text]
    assert len(told) == 2
    assert copy.received == []


@on_loop
async def test_a_run_that_this_host_has_dialed_is_asked_too() -> None:
    """The original is reached, and never dials; a copy of it does."""
    a, original = Host(options=QUICK), Host(options=QUICK)
    original.transport.identify("h", start(1))
    async with running(a, original):
        a.send(original)
        await until(lambda: original.received)
        assert "still answers" in await refused(a, run=start(2, 1), host_id="h")
        assert a.connected(original)


@on_loop
async def test_a_connection_to_a_run_that_is_over_is_given_up() -> None:
    """To notice that it is dead would take ten seconds."""

    async def mute(caller: FakePeer) -> None:
        introduction = await caller.next_frame()
        assert introduction.kind == FrameKind.HELLO
        await caller.send(encode_hello(hello(address, address=address, host_id="h", run=start(1))))
        await trio.sleep_forever()

    a = Host(options=QUICK)
    async with listening(mute) as address, running(a):
        a.send(address)
        await until(lambda: a.connected(address))
        await FakePeer.introduced(a, run=start(2, 1), host_id="h")
        await until(lambda: a.lost == [address])
        assert "another run of the host has taken its place" in a.transport.peers()[address].error


# ---- claims of others: all who connect are told the id and the run of the host that they reach

MEMBER, OTHER_MEMBER, STRANGER = "10.0.0.1:1", "10.0.0.2:1", "10.6.6.6:1"


class FakeLink:
    def __init__(self, alive: bool) -> None:
        self.alive, self.given_up = alive, False

    async def answers(self, within: float) -> bool:
        return self.alive

    def give_up(self) -> None:
        self.given_up = True


def everywhere(_address: str) -> bool:
    return True


class Meeting:
    """What one host remembers of others, two of which are members."""

    def __init__(self, **known: tuple[int, int, str]) -> None:
        self.known = KnownHosts("own", Run.first(1), timeout=0.1)
        self.written: list[dict[str, tuple[int, int]]] = []
        """The runs; `last` has also where they were heard of."""
        self.last: RunMemory = {}
        self.known.on_change = self.write
        self.replaced: list[tuple[str, str, tuple[int, int], int]] = []
        """The runs of which the end was told, each with how many connections it still had."""
        self.known.on_replaced = self.end
        self.known.remember(known)
        self.known.set_members([MEMBER, OTHER_MEMBER])

    def end(self, address: str, host_id: str, start: tuple[int, int], links: Collection[object]) -> None:
        self.replaced.append((address, host_id, start, len(links)))

    def write(self, runs: RunMemory) -> None:
        self.last = dict(runs)
        self.written.append({name: (count, nonce) for name, (count, nonce, _) in runs.items()})

    async def comes(
        self,
        address: str,
        run: Run,
        *,
        host_id: str = "h",
        at_home: bool = True,
        alive: bool = False,
        names: Collection[str] | None = None,
    ) -> FakeLink:
        """`names`: the addresses for which its certificate is; None: there are no certificates."""
        introduction = hello("own", address=address, run=run, host_id=host_id)
        may_be = everywhere if names is None else names.__contains__
        await self.known.admit(introduction, may_be, at_home=at_home)
        link = FakeLink(alive)
        self.known.add(introduction, link, at_home=at_home)
        return link


CLAIMS = {
    "a stranger": (STRANGER, True),
    "another member": (OTHER_MEMBER, True),
    "one that has not shown that it is there": (MEMBER, False),
}


@pytest.mark.parametrize(("address", "at_home"), CLAIMS.values(), ids=CLAIMS)
@on_loop
async def test_a_claim_from_elsewhere_neither_keeps_a_member_out_nor_lets_a_copy_of_it_in(
    address: str, at_home: bool
) -> None:
    a = Meeting()
    await a.comes(MEMBER, start(2, 1))
    claim = await a.comes(address, start(9, 8, count=1000), at_home=at_home, alive=True)
    assert a.written == [{"h": (2, 2)}]
    with pytest.raises(RefusedError, match="does not follow its run 2"):
        await a.comes(MEMBER, start(7, 1))
    link = await a.comes(MEMBER, start(3, 2, 1))
    assert a.written[-1] == {"h": (3, 3)}
    assert not claim.given_up
    assert not link.given_up


@pytest.mark.parametrize(
    ("address", "at_home"), [(STRANGER, True), (MEMBER, False)], ids=["a stranger", "not there"]
)
@pytest.mark.parametrize("count", [1000, 2], ids=["a later run", "the same run"])
@on_loop
async def test_a_claim_that_comes_first_does_not_keep_a_member_out(
    address: str, at_home: bool, count: int
) -> None:
    a = Meeting()
    await a.comes(address, start(2, 1, count=count), at_home=at_home, alive=True)
    assert a.written == [], "the runs of members alone are"
    await a.comes(MEMBER, start(2, 1))
    await a.comes(MEMBER, start(3, 2, 1))
    assert a.written == [{"h": (2, 2)}, {"h": (3, 3)}]


@on_loop
async def test_what_was_written_before_is_changed_by_members_only() -> None:
    a = Meeting(h=(2, 2, ""))
    await a.comes(STRANGER, start(9, 8, count=1000), alive=True)
    assert a.written == []
    with pytest.raises(RefusedError, match="does not follow its run 2"):
        await a.comes(MEMBER, start(7, 1))
    await a.comes(MEMBER, start(3, 2, 1))
    assert a.written == [{"h": (3, 3)}]


@on_loop
async def test_after_a_restart_the_run_of_a_member_is_changed_by_no_other_member() -> None:
    before = Meeting()
    await before.comes(MEMBER, start(2, 1))
    a = Meeting(**before.last)
    await a.comes(OTHER_MEMBER, start(9, 8, count=1000), alive=True)
    assert a.written == []
    await a.comes(MEMBER, start(3, 2, 1))
    assert a.written == [{"h": (3, 3)}]


@on_loop
async def test_a_copy_at_another_address_is_refused_while_the_member_answers() -> None:
    a = Meeting()
    await a.comes(MEMBER, start(1), alive=True)
    for address in (STRANGER, OTHER_MEMBER):
        with pytest.raises(RefusedError, match="which still answers"):
            await a.comes(address, start(2, 1))


@on_loop
async def test_a_member_that_has_moved_is_known_at_its_new_address() -> None:
    a, new = Meeting(), "10.0.0.3:1"
    await a.comes(MEMBER, start(1))
    a.known.set_members([new, OTHER_MEMBER])
    with pytest.raises(RefusedError, match="does not follow its run 1"):
        await a.comes(new, start(7))
    await a.comes(new, start(2, 1), alive=True)
    assert a.written[-1] == {"h": (2, 2)}
    with pytest.raises(RefusedError, match="does not follow its run 2"):
        await a.comes(MEMBER, start(8, 1))


NEW = "10.0.0.3:1"


@pytest.mark.parametrize(
    ("elsewhere", "address", "remembered"),
    [
        pytest.param(None, MEMBER, {MEMBER: 2}, id="nowhere else"),
        pytest.param(STRANGER, NEW, {NEW: 2}, id="at no member's place"),
        pytest.param(MEMBER, OTHER_MEMBER, {OTHER_MEMBER: 2}, id="where a member was that has moved here"),
        pytest.param(MEMBER, NEW, {MEMBER: 1}, id="where a member was, and this is none"),
        pytest.param(OTHER_MEMBER, NEW, {OTHER_MEMBER: 1}, id="at a member's place, and this is none"),
        pytest.param(
            OTHER_MEMBER, "10.0.0.4:1", {OTHER_MEMBER: 1}, id="at a member's place, and this is new"
        ),
    ],
)
@on_loop
async def test_whether_a_place_may_tell_of_a_run_depends_on_where_else_it_was_heard_of(
    elsewhere: str | None, address: str, remembered: dict[str, int]
) -> None:
    """By then the member has left MEMBER."""
    a = Meeting()
    before = await a.comes(elsewhere, start(1)) if elsewhere else None
    a.known.set_members([OTHER_MEMBER, "10.0.0.4:1"])
    await a.comes(address, start(2, 1))
    assert {place: it.start[0] for (place, _), it in a.known._heard["h"].items()} == remembered
    assert before is None or before.given_up == (elsewhere not in remembered)


@on_loop
async def test_a_member_may_tell_of_its_run_though_another_has_told_of_it() -> None:
    a = Meeting(h=(1, 1, OTHER_MEMBER), **{f"h\n{MEMBER}": (1, 1, MEMBER)})
    await a.comes(MEMBER, start(2, 1))
    assert a.last == {"h": (1, 1, OTHER_MEMBER), f"h\n{MEMBER}": (2, 2, MEMBER)}


@on_loop
async def test_the_run_of_a_host_is_written_once_it_is_a_member() -> None:
    a = Meeting()
    await a.comes("10.0.0.3:1", start(1))
    assert a.written == []
    a.known.set_members([MEMBER, OTHER_MEMBER, "10.0.0.3:1"])
    assert a.written == [{"h": (1, 1)}]


@on_loop
async def test_ids_without_end_push_no_member_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "MAX_HOSTS", 5)
    a = Meeting()
    await a.comes(MEMBER, start(2, 1))
    for number in range(1, 20):
        await a.comes(f"10.6.6.6:{number}", start(1), host_id=f"id {number}")
    assert len(a.written) == 1
    assert a.known.host_id_at(MEMBER) == "h"
    assert [a.known.host_id_at(f"10.6.6.6:{number}") for number in (15, 16)] == ["", "id 16"]
    with pytest.raises(RefusedError, match="does not follow its run 2"):
        await a.comes(MEMBER, start(7, 1))


@on_loop
async def test_a_member_with_many_ids_pushes_out_none_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "MAX_HOSTS", 5)
    a = Certified()
    await a.comes(MEMBER, start(2, 1))
    await a.comes(OTHER_MEMBER, start(2, 1, count=1000))
    for number in range(1, 20):
        await a.comes(OTHER_MEMBER, start(1), host_id=f"id {number}")
    assert a.last == {"h": (2, 2, MEMBER)} | {
        f"id {number}": (1, 1, OTHER_MEMBER) for number in range(16, 20)
    }


# ---- where each host has a certificate for its own address


class Certified(Meeting):
    async def comes(self, address: str, run: Run, **options: Any) -> FakeLink:
        return await super().comes(address, run, **{"names": [address], **options})


@pytest.mark.parametrize("claimed_at", [OTHER_MEMBER, STRANGER])
@pytest.mark.parametrize("address", [MEMBER, "10.0.0.3:1"], ids=["a member", "one that is none yet"])
@on_loop
async def test_a_claim_with_another_certificate_keeps_no_host_out(claimed_at: str, address: str) -> None:
    a = Certified()
    claim = await a.comes(claimed_at, start(9, 8, count=1000), alive=True)
    host = await a.comes(address, start(2, 1))
    again = await a.comes(address, start(3, 2, 1))
    assert (claim.given_up, host.given_up, again.given_up) == (False, True, False)


@on_loop
async def test_what_is_claimed_with_another_certificate_lets_no_copy_in() -> None:
    """Nor after a restart: what was heard at both addresses is written."""
    before = Certified()
    await before.comes(MEMBER, start(3, 2, 1))
    await before.comes(OTHER_MEMBER, start(9, 8, count=1000))
    for a in (before, Certified(**before.last)):
        with pytest.raises(RefusedError, match="does not follow its run 3"):
            await a.comes(MEMBER, start(7, 2, 1))
        await a.comes(MEMBER, start(4, 3, 2, 1))


@on_loop
async def test_a_copy_whose_certificate_is_for_the_original_too_is_refused() -> None:
    a = Certified()
    await a.comes(MEMBER, start(3, 2, 1), alive=True)
    for address in (OTHER_MEMBER, STRANGER):
        with pytest.raises(RefusedError, match="does not follow its run 3"):
            await a.comes(address, start(7, 2, 1), names=[MEMBER, address])
        with pytest.raises(RefusedError, match="which still answers"):
            await a.comes(address, start(4, 3, 2, 1), names=[MEMBER, address])


@pytest.mark.parametrize("first", [True, False], ids=["before the shards know", "after"])
@on_loop
async def test_a_member_that_moves_is_judged_by_what_was_heard_where_it_was(first: bool) -> None:
    a, new = Certified(), "10.0.0.3:1"
    await a.comes(MEMBER, start(3, 2, 1))
    copy = await a.comes(new, start(7, 2, 1)) if first else None
    a.known.move(MEMBER, new)
    a.known.set_members([MEMBER, new, OTHER_MEMBER])
    assert copy is None or copy.given_up, "it has to come again"
    b = Certified(**a.last)
    b.known.set_members([new, OTHER_MEMBER])
    for each in (a, b):
        with pytest.raises(RefusedError, match="does not follow its run 3"):
            await each.comes(new, start(7, 2, 1))
        await each.comes(new, start(4, 3, 2, 1))


@on_loop
async def test_a_member_that_moves_to_the_address_of_another_takes_no_identity_along() -> None:
    a = Certified()
    await a.comes(OTHER_MEMBER, start(9, 8, count=1000))
    a.known.move(OTHER_MEMBER, MEMBER)
    await a.comes(MEMBER, start(2, 1))


# ---- the end of a run, which is evidence that its process has ended


@pytest.mark.parametrize("address", [MEMBER, STRANGER], ids=["a member", "one that is none"])
@on_loop
async def test_a_host_that_comes_to_its_own_address_in_another_run_shows_the_end_of_the_last(
    address: str,
) -> None:
    a = Meeting()
    for _ in range(2):
        await a.comes(address, start(2, 1))
    assert a.replaced == []
    await a.comes(address, start(3, 2, 1))
    assert a.replaced == [(address, "h", (2, 2), 2)]


@pytest.mark.parametrize(("address", "at_home"), CLAIMS.values(), ids=CLAIMS)
@on_loop
async def test_a_claim_from_elsewhere_shows_the_end_of_no_run(address: str, at_home: bool) -> None:
    a = Meeting()
    await a.comes(MEMBER, start(2, 1))
    await a.comes(address, start(3, 2, 1), at_home=at_home)
    await a.comes(address, start(4, 3, 2, 1), at_home=at_home)
    assert [place for place, *_ in a.replaced if place == MEMBER] == []


@on_loop
async def test_the_run_of_a_host_that_is_no_member_is_not_ended_by_a_claim_from_elsewhere() -> None:
    """It is watched, say. Its id is no secret, and while it does not answer, others may come with it."""
    a = Meeting()
    host = await a.comes(STRANGER, start(2, 1))
    await a.comes("10.7.7.7:1", start(3, 2, 1))
    assert host.given_up
    assert a.replaced == []


@on_loop
async def test_a_run_that_was_known_from_before_is_told_without_connections() -> None:
    a = Meeting(h=(2, 2, MEMBER))
    await a.comes(MEMBER, start(3, 2, 1))
    assert a.replaced == [(MEMBER, "h", (2, 2), 0)]


@on_loop
async def test_a_member_that_has_moved_shows_the_end_of_the_run_where_it_was() -> None:
    a, new = Meeting(), "10.0.0.3:1"
    await a.comes(MEMBER, start(1))
    a.known.set_members([new, OTHER_MEMBER])
    await a.comes(new, start(2, 1))
    assert a.replaced == [(MEMBER, "h", (1, 1), 1)]


@on_loop
async def test_a_newcomer_that_is_refused_shows_the_end_of_no_run() -> None:
    a = Meeting()
    await a.comes(MEMBER, start(1), alive=True)
    with pytest.raises(RefusedError, match="which still answers"):
        await a.comes(MEMBER, start(2, 1))
    assert a.replaced == []
