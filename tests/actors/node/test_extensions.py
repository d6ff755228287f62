"""Extensions in a node: records through the log, their part of snapshots, vetoes, and mistakes that end the replica."""

import logging
import threading
import time

import cbor2
import pytest
from drakkar.actors.node.events import ExtensionEvent
from drakkar.actors.node.extension_states import ExtensionStates
from drakkar.actors.node.introductions import Introduced
from drakkar.actors.node.proposed import Bounds, Verdict, examine
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.effects import MAX_EFFECTS
from drakkar.handlers.errors import ExtensionFailed, MissingExtension, ReplicaStopped, RequestDropped, Vetoed
from drakkar.handlers.extension import Extension, delivers, handles
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from drakkar.handlers.raft.lives import Lives, Standing
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.ready import Refusal
from drakkar.handlers.raft.state import HardState, Membership, Snapshot, State
from drakkar.transport.shard_frames import ShardHello, decode_shard

from tests.actors.node.support import ALONE, ORIGIN, THREE, Held, M
from tests.actors.support import TIMEOUT_S, Gated, Ledger, settled, until

MARK = EntryKind.define("test_extensions.mark", 201)
OTHER = EntryKind.define("test_extensions.other", 202)
NOTE = M.define("test_extensions.note", 40_201)
SEEN = M.define("test_extensions.seen", 40_202)
FOUNDING = b"f" * 16


class Marks(Extension):
    """Remembers all records and commands, in the order in which they are delivered."""

    name = "marks"

    def __init__(self, node):
        self.node, self.seen = node, []

    @handles(NOTE)
    def note(self, message):
        return self.node.propose(MARK, message.payload)

    @handles(SEEN)
    def answer(self, message):
        return list(self.seen)

    @delivers(MARK, EntryKind.COMMAND)
    def deliver(self, entry):
        if entry.payload == b"bad":
            raise ZeroDivisionError("a bug in an extension")
        self.seen.append(entry.payload)

    def save(self):
        return cbor2.dumps(self.seen)

    def load(self, data):
        self.seen = cbor2.loads(data)


class Book(Ledger):
    """All commands, also in its snapshots. On a worker."""

    def save(self, sink):
        sink.write(b" ".join(self.commands))

    def load(self, source):
        self.commands = source.read().split()


class InlineBook(Book):
    blocks = False


BOOKS = [pytest.param(Book, id="on a worker"), pytest.param(InlineBook, id="on the loop")]


def a_table(*extensions):
    table = raft_handlers()
    table.use(*(extensions or [Marks]))
    return table


def ask(one, type_, payload=None):
    return settled(one.replica.ask(Message(type_, payload=payload), block=False))


def marks(one):
    return one.actor.raft.extension(Marks)


def published(one):
    return [event.event for event in one.services.events if type(event) is ExtensionEvent]


def ended(one, error):
    """Wait until it has ended with that error, and return why it says so."""
    assert type(one.reason()) is error
    return until(lambda: one.replica.status().ended).why


# -- records


@pytest.mark.parametrize("book", BOOKS)
def test_records_and_commands_are_delivered_in_the_order_of_the_log(node, book):
    one = node(book(), handlers=a_table()).lead()
    for number in range(3):
        assert ask(one, NOTE, b"mark %d" % number) == ""
        assert settled(one.replica.propose(b"command %d" % number)) == number + 1
    seen = until(lambda: len(marks(one).seen) == 6 and ask(one, SEEN))
    assert seen == [b"mark 0", b"command 0", b"mark 1", b"command 1", b"mark 2", b"command 2"]
    assert settled(one.replica.read(None)) == [b"command 0", b"command 1", b"command 2"]
    assert one.actor.tally.delivered[State.LEADER, MARK] == 3
    assert one.replica.counters["delivered test_extensions.mark in LEADER"] == 3


def test_a_client_has_its_result_after_the_extension_has_its_entry(node):
    one = node(InlineBook(), handlers=a_table()).lead()
    seen = []
    future = one.replica.propose(b"command")
    future.add_done_callback(lambda _: seen.extend(marks(one).seen))
    settled(future)
    until(lambda: seen)
    assert seen == [b"command"]


def test_effects_of_many_deliveries_are_done_on_the_way(node):
    class First(Extension):
        @delivers(EntryKind.COMMAND)
        def publish(self, entry):
            for _ in range(MAX_EFFECTS * 3 // 5):
                self.node.publish_event(type(self).__name__)

    class Second(First):
        pass

    one = node(InlineBook(), handlers=a_table(First, Second)).lead()
    assert settled(one.replica.propose(b"command")) == 1
    many = MAX_EFFECTS * 3 // 5
    events = until(lambda: (found := published(one)) and len(found) == 2 * many and found)
    assert events == ["First"] * many + ["Second"] * many


def test_a_record_that_the_leader_refuses_later_is_counted_and_told_by_the_log(node, caplog):
    one = node(InlineBook(), members=THREE, handlers=a_table()).follow()
    assert ask(one, NOTE, b"mark") == ""
    (sent,) = one.services.messages(M.PROPOSE)
    assert [entry.kind for entry in sent.entries] == [MARK]
    for _ in range(3):
        one.tell(M.PROPOSE_REFUSED, sender=2, log_index=1, payload=["KIND_MISSING", 3])
    assert one.replica.counters["records refused"] == 3
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    told = [text for text in told if "a record that a handler here proposed was refused" in text]
    assert len(told) == 2, "the first and the second, and then ever more seldom"
    assert "those that have not: 3" in told[0]


@pytest.mark.parametrize("book", BOOKS)
def test_a_mistake_in_delivery_ends_the_replica_and_names_class_method_and_index(node, book):
    one = node(book(), handlers=a_table()).lead()
    settled(one.replica.propose(b"good"))
    assert ask(one, NOTE, b"bad") == ""
    index = one.actor.raft.log.last_index
    why = ended(one, ExtensionFailed)
    assert why == (
        f"replica 1 of shard 1 stops: Marks.deliver failed at index {index}: "
        "ZeroDivisionError('a bug in an extension')"
    )
    assert type(one.actor.tally.broken) is ExtensionFailed
    assert marks(one).seen == [b"good"]


def log_with(*kinds, commit=None):
    entries = [Entry(term=1, kind=kind, payload=b"%d" % place) for place, kind in enumerate(kinds, 1)]
    return MemoryLog(
        entries, HardState(1, 1, len(kinds) if commit is None else commit), membership=Membership(ALONE)
    )


@pytest.mark.parametrize("book", BOOKS)
def test_a_replica_that_meets_a_kind_without_its_extension_applies_all_before_and_ends(node, book):
    machine = book()
    one = node(machine, log=log_with(EntryKind.COMMAND, EntryKind.COMMAND, MARK, EntryKind.COMMAND))
    why = ended(one, MissingExtension)
    assert "replica 1 of shard 1 stops: index 3 has an entry of kind 201 (test_extensions.mark)" in why
    assert "start it with a table that uses this extension" in why
    assert machine.commands in ([b"1", b"2"], [b"1"], []), "none behind it"


def test_one_that_is_started_with_the_extension_goes_on_from_there(node):
    one = node(InlineBook(), log=log_with(EntryKind.COMMAND, MARK, EntryKind.COMMAND), handlers=a_table())
    until(lambda: len(marks(one).seen) == 3)
    assert ask(one, SEEN) == [b"1", b"2", b"3"]


def test_a_witness_keeps_no_records(node):
    one = node(InlineBook(), members=THREE, role=State.WITNESS, handlers=a_table()).follow()
    metadata = Entries([Run(1, 5, [b"", b""], bytes([EntryKind.METADATA, EntryKind.METADATA]))])
    one.tell(M.REPLICATE, sender=2, term=5, commit=2, entries=metadata)
    until(lambda: one.replica.status().applied == 2)
    assert marks(one).seen == []
    assert ask(one, NOTE, b"mark") == "a witness keeps no records"


# -- records of other replicas


BOUNDS = Bounds.of(1000, 4000)


def run(*kinds, size=1):
    return Run(0, 0, [bytes(size)] * len(kinds), bytes(kinds), ORIGIN, 1)


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        pytest.param([MARK], Verdict.SOUND, id="a record"),
        pytest.param([0, MARK, 0], Verdict.SOUND, id="among commands"),
        pytest.param([OTHER], Verdict.KIND_MISSING, id="a kind that is not delivered here"),
        pytest.param([MARK, 255], Verdict.KIND_MISSING, id="a kind that is not known here"),
        pytest.param([MARK, 1], Verdict.POISON, id="a leader's own"),
        pytest.param([OTHER, 127], Verdict.POISON, id="none at all"),
    ],
)
def test_which_records_of_another_replica_are_logged(kinds, verdict):
    assert examine([run(*kinds)], BOUNDS, {int(MARK)}).verdict is verdict


def test_a_record_of_another_replica_has_a_bounded_size():
    assert examine([run(MARK, size=1001)], BOUNDS, {int(MARK)}).verdict is Verdict.TOO_LARGE
    assert examine([run(MARK, size=1000)], BOUNDS, {int(MARK)}).verdict is Verdict.SOUND


def test_a_leader_logs_the_records_of_a_follower_and_refuses_those_of_other_kinds(node):
    one = node(InlineBook(), members=THREE, handlers=a_table()).lead()
    one.acknowledge(2, 3)
    last = one.replica.status().last_index
    one.tell(M.PROPOSE, sender=2, entries=Entries([run(OTHER)]))
    (refused,) = one.services.messages(M.PROPOSE_REFUSED)
    assert (refused.to, refused.payload) == (2, "KIND_MISSING")
    assert not one.services.charged["two:2"], "a host of another version does so"
    assert one.replica.status().last_index == last
    one.tell(M.PROPOSE, sender=2, entries=Entries([run(MARK)]))
    one.acknowledge(2, 3)
    until(lambda: marks(one).seen == [b"\0"])


# -- what replicas tell of their kinds


def member(node, table=None):
    lives = Lives(FOUNDING, Standing.SETTLED)
    homes = {1: 11, 2: 22, 3: 33}
    log = MemoryLog(membership=Membership(THREE, homes=homes), lives=lives)
    return node(InlineBook(), members=THREE, log=log, home=11, handlers=table or a_table())


def introduce(one, replica, kinds, *, standing=Standing.SETTLED):
    hello = ShardHello(1, replica, FOUNDING, standing, THREE, kinds=kinds)
    one.ref.tell(Introduced(hello, 11 * replica, THREE[replica]))
    one.settle()


def test_a_replica_tells_the_kinds_that_its_table_delivers(node):
    one = member(node)
    told = decode_shard(one.actor.introductions.body)
    assert told.kinds == {201: "test_extensions.mark"}


def test_a_kind_is_logged_only_once_all_members_have_said_that_they_have_it(node):
    one = member(node)
    introduce(one, 2, {201: "test_extensions.mark"})
    introduce(one, 3, None)
    one.lead()
    one.acknowledge(2, 3)
    assert ask(one, NOTE, b"mark") == f"{Refusal.KIND_MISSING.value}; those that have not: 3"
    introduce(one, 3, {201: "test_extensions.mark", 200: "another one"})
    assert ask(one, NOTE, b"mark") == ""


def test_a_kind_that_is_another_thing_elsewhere_is_warned_of_and_not_logged(node, caplog):
    one = member(node)
    introduce(one, 2, {201: "court.verdict"})
    introduce(one, 3, {201: "test_extensions.mark"})
    (warned,) = [text for each in caplog.records if "records of the kind" in (text := each.getMessage())]
    assert (
        "records of the kind 201 are 'test_extensions.mark' here and 'court.verdict' at replica 2 at two:2"
        in warned
    )
    one.lead()
    assert ask(one, NOTE, b"mark") == f"{Refusal.KIND_MISSING.value}; those that have not: 2"


# -- snapshots


def restarted(node, one, book, *, table=None, files, entries=(), **options):
    """A node that starts from the newest snapshot of another one, and these entries behind it."""
    (snapshot,) = one.services.recorded[-1:]
    behind = [Entry(term=1, kind=kind, payload=payload) for kind, payload in entries]
    last = snapshot.index + len(behind)
    log = MemoryLog(behind, HardState(1, 1, last), membership=Membership(ALONE), snapshot=snapshot)
    return node(book(), log=log, snapshots=files, handlers=table or a_table(), **options)


@pytest.mark.parametrize("book", BOOKS)
def test_the_state_of_an_extension_is_part_of_the_snapshot_and_the_log_behind_it_is_delivered_again(
    node, book
):
    files = MemorySnapshots().of(1, 1)
    one = node(book(), handlers=a_table(), snapshots=files).lead()
    ask(one, NOTE, b"mark")
    settled(one.replica.propose(b"command"))
    assert settled(one.replica.snapshot())
    settled(one.replica.propose(b"later"))
    two = restarted(node, one, book, files=files, entries=[(MARK, b"next"), (EntryKind.COMMAND, b"last")])
    until(lambda: len(marks(two).seen) == 4)
    assert ask(two, SEEN) == [b"mark", b"command", b"next", b"last"]


class GatedBook(Book, Gated):
    """Waits at a gate where it is told to apply."""


def test_a_snapshot_has_the_state_at_its_index_though_the_loop_is_behind_and_more_comes(node):
    """When it is ordered, the state machine was given entries that are not delivered yet; before it is written, more are."""
    files = MemorySnapshots().of(1, 1)
    machine = GatedBook(apply_waits=True)
    one = node(machine, handlers=a_table(), snapshots=files).lead()
    before = [one.replica.propose(b"%d" % number) for number in range(3)]
    assert machine.arrived.wait(TIMEOUT_S)
    one.settle()
    snapshot = one.replica.snapshot()
    one.settle()
    after = [one.replica.propose(b"%d" % number) for number in range(3, 6)]
    one.settle()
    assert marks(one).seen == []
    assert not one.actor.raft.caught_up
    machine.gate.set()
    for future in (*before, *after):
        settled(future)
    index = settled(snapshot)
    two = restarted(node, one, Book, files=files)
    until(lambda: marks(two).seen)
    assert two.replica.status().applied == index
    assert ask(two, SEEN) == settled(two.replica.stale_read(None))
    assert ask(two, SEEN) != ask(one, SEEN)


def test_a_part_of_an_extension_that_the_table_lacks_ends_the_replica(node):
    files = MemorySnapshots().of(1, 1)
    one = node(InlineBook(), handlers=a_table(), snapshots=files).lead()
    ask(one, NOTE, b"mark")
    assert settled(one.replica.snapshot())
    two = restarted(node, one, InlineBook, files=files, table=raft_handlers())
    why = ended(two, MissingExtension)
    assert "a part of a snapshot that the extension 'marks' has saved" in why


def test_an_extension_that_is_new_finds_no_part_in_an_older_snapshot(node):
    files = MemorySnapshots().of(1, 1)
    one = node(InlineBook(), snapshots=files).lead()
    settled(one.replica.propose(b"old"))
    assert settled(one.replica.snapshot())
    two = restarted(node, one, InlineBook, files=files, entries=[(MARK, b"new")])
    until(lambda: marks(two).seen)
    assert ask(two, SEEN) == [b"new"]


class Unsaved(Marks):
    def save(self):
        raise ZeroDivisionError("a bug in save")


class Unloaded(Marks):
    def load(self, data):
        raise ZeroDivisionError("a bug in load")


@pytest.mark.parametrize("book", BOOKS)
def test_a_mistake_in_save_ends_the_replica_and_all_who_wait(node, book):
    one = node(book(), handlers=a_table(Unsaved)).lead()
    settled(one.replica.propose(b"command"))
    outcome = settled(one.replica.snapshot())
    assert type(outcome) is ReplicaStopped
    assert "Unsaved.save failed at index" in ended(one, ExtensionFailed)
    settled(one.actor.over)


def test_a_mistake_in_load_ends_the_replica(node):
    files = MemorySnapshots().of(1, 1)
    one = node(InlineBook(), handlers=a_table(), snapshots=files).lead()
    settled(one.replica.propose(b"command"))
    assert settled(one.replica.snapshot())
    two = restarted(node, one, InlineBook, files=files, table=a_table(Unloaded))
    assert "Unloaded.load failed at index" in ended(two, ExtensionFailed)


def test_a_leaders_snapshot_brings_the_state_of_the_extensions(node):
    files = MemorySnapshots().of(1, 1)
    one = node(InlineBook(), handlers=a_table(), snapshots=files).lead()
    ask(one, NOTE, b"mark")
    settled(one.replica.propose(b"command"))
    assert settled(one.replica.snapshot())
    (taken,) = one.services.recorded
    two = node(InlineBook(), members=THREE, handlers=a_table(), snapshots=files).follow()
    files.pin(taken.payload.decode())
    two.tell(
        M.INSTALL_SNAPSHOT,
        sender=2,
        term=5,
        snapshot=Snapshot(taken.index, 1, Membership(THREE), taken.payload),
    )
    until(lambda: two.replica.status().applied == taken.index)
    assert ask(two, SEEN) == [b"mark", b"command"]


def test_an_export_has_them_too(node, tmp_path):
    one = node(InlineBook(), handlers=a_table()).lead()
    ask(one, NOTE, b"mark")
    assert settled(one.replica.snapshot(export_to=tmp_path / "file"))
    assert b"mark" in (tmp_path / "file").read_bytes()


class SlowBook(Book):
    """Waits at a gate where it is told to load."""

    def __init__(self):
        super().__init__()
        self.arrived, self.gate = threading.Event(), threading.Event()

    def load(self, source):
        self.arrived.set()
        assert self.gate.wait(TIMEOUT_S)
        super().load(source)


def test_what_is_exported_before_the_first_snapshot_is_loaded_has_its_state(node, tmp_path):
    files = MemorySnapshots().of(1, 1)
    one = node(Book(), handlers=a_table(), snapshots=files).lead()
    ask(one, NOTE, b"mark")
    assert settled(one.replica.snapshot())
    machine = SlowBook()
    two = restarted(node, one, lambda: machine, files=files)
    assert machine.arrived.wait(TIMEOUT_S)
    exported = two.replica.snapshot(export_to=tmp_path / "file")
    until(lambda: two.actor.extension_states._open)
    machine.gate.set()
    assert settled(exported)
    assert b"mark" in (tmp_path / "file").read_bytes()


def test_what_is_asked_before_the_first_snapshot_is_loaded_waits_for_the_state(node):
    files = MemorySnapshots().of(1, 1)
    one = node(Book(), handlers=a_table(), snapshots=files).lead()
    ask(one, NOTE, b"mark")
    assert settled(one.replica.snapshot())
    machine, later = SlowBook(), [0.0]
    two = restarted(node, one, lambda: machine, files=files, now=lambda: time.monotonic() + later[0])
    assert machine.arrived.wait(TIMEOUT_S)
    assert not two.actor.raft.caught_up
    asked = two.replica.ask(Message(SEEN), block=False, timeout=60)
    by_ref = two.ref.ask(Message(SEEN), block=False)
    late = two.replica.ask(Message(SEEN), block=False, timeout=1)
    two.settle()
    later[0] = 1.0
    two.tick()
    assert type(settled(late)) is RequestDropped
    assert not asked.done
    machine.gate.set()
    assert settled(asked) == settled(by_ref) == [b"mark"]
    assert two.actor.raft.caught_up


def test_a_worker_that_waits_for_the_loop_is_let_go_when_the_node_ends(node):
    one = node(Book(), handlers=a_table()).lead()
    settled(one.replica.propose(b"command"))
    one.actor.raft.save_extensions = lambda _index, _done: None
    snapshot = one.replica.snapshot()
    until(lambda: one.actor.extension_states._open)
    one.ref.stop()
    assert type(settled(snapshot)) is ReplicaStopped
    settled(one.actor.over)


class FakeRaft:
    """A core that saves when the test says so."""

    def __init__(self):
        self.handlers, self.extensions_loading = a_table(), False
        self.asked, self.loaded = [], []

    def save_extensions(self, index, done):
        self.asked.append((index, done))

    def load_extensions(self, data, index):
        self.loaded.append((data, index))


def test_what_is_saved_while_the_first_snapshot_is_loaded_is_asked_for_behind_it():
    """Else it would be the state of extensions that have just been made, under the index of the snapshot."""
    raft = FakeRaft()
    states = ExtensionStates(raft)
    states.begin()
    future = states.at(7)
    assert raft.asked == []
    states.loaded(Snapshot(7, 1), b"state")
    assert raft.loaded == [(b"state", 7)]
    ((index, done),) = raft.asked
    assert index == 7
    done(b"saved")
    assert settled(future) == b"saved"


def test_no_worker_waits_for_a_node_that_ends_or_for_a_state_that_a_leaders_snapshot_replaced():
    raft = FakeRaft()
    states = ExtensionStates(raft)
    replaced, lost = states.at(7), states.at(9)
    raft.asked[0][1](None)
    assert type(settled(replaced)) is RequestDropped
    states.stop(ReplicaStopped("it has ended"))
    assert type(settled(lost)) is ReplicaStopped


def test_without_extensions_nothing_is_saved():
    raft = FakeRaft()
    raft.handlers = raft_handlers()
    assert ExtensionStates(raft).at(7) is None


# -- vetoes


class Censor(Extension):
    """Refuses what it does not like, at the leader or wherever it comes by."""

    def __init__(self, node):
        self.node = node

    @handles(M.PROPOSE, wrap=True)
    def read_proposals(self, message, inner):
        rest = self.node.veto(message, "no swearing", only=lambda entry: b"damn" in entry.payload)
        if rest is not None:
            inner(rest)

    @handles(M.READ_INDEX, wrap=True)
    def refuse_reads(self, message, inner):
        self.node.veto(message, "nothing to see here")

    @handles(M.LEADER_TRANSFER, wrap=True)
    def refuse_transfers(self, message, inner):
        self.node.veto(message, "the captain stays")


def refused(future, text):
    outcome = settled(future)
    return type(outcome) is Vetoed and str(outcome) == text


def test_a_veto_falls_on_single_proposals_and_the_others_in_their_batch_go_on(node):
    one = node(InlineBook(), handlers=a_table(Censor)).lead()
    with Held(one):
        futures = [one.replica.propose(text) for text in (b"a", b"damn", b"b", b"damn it", b"c")]
        many = one.replica.propose_many([b"d", b"e"])
    assert [settled(futures[place]) for place in (0, 2, 4)] == [1, 2, 3]
    assert refused(futures[1], "no swearing")
    assert refused(futures[3], "no swearing")
    assert settled(many) == [4, 5]


def test_reads_and_transfers_are_refused_with_the_text_too(node):
    one = node(InlineBook(), members=THREE, handlers=a_table(Censor)).lead()
    assert refused(one.replica.read(None), "nothing to see here")
    assert refused(one.replica.transfer_leadership(2), "the captain stays")


def test_a_follower_refuses_before_it_forwards(node):
    one = node(InlineBook(), members=THREE, handlers=a_table(Censor)).follow()
    assert refused(one.replica.propose(b"damn"), "no swearing")
    assert one.services.messages(M.PROPOSE) == []
    assert refused(one.replica.read(None), "nothing to see here")
    assert refused(one.replica.transfer_leadership(3), "the captain stays")


def test_the_leader_refuses_what_was_forwarded_and_the_proposer_hears_its_text(node):
    leader = node(InlineBook(), members=THREE, handlers=a_table(Censor)).lead()
    proposal = Entries([Run(0, 0, [b"fine", b"damn"], b"", 77, 5)])
    leader.tell(M.PROPOSE, sender=2, entries=proposal)
    (refusal,) = leader.services.messages(M.PROPOSE_REFUSED)
    assert (refusal.to, refusal.hint, refusal.hint_high, refusal.log_index) == (2, 77, 6, 1)
    follower = node(InlineBook(), members=THREE).follow()
    future = follower.replica.propose(b"damn")
    follower.settle()
    follower.tell(M.PROPOSE_REFUSED, sender=2, hint=ORIGIN, hint_high=1, log_index=1, payload=refusal.payload)
    assert refused(future, "no swearing")
