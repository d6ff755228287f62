"""The states of extensions in snapshots: saved at exactly the labelled index, loaded with the snapshot."""

from functools import partial

import cbor2
import pytest
from drakkar.handlers import (
    ConfigError,
    CorruptData,
    Entry,
    EntryKind,
    Extension,
    ExtensionFailed,
    Membership,
    Message,
    MessageType,
    MissingExtension,
    State,
    delivers,
    handles,
    raft_handlers,
)
from drakkar.handlers.raft import extension_states
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange

from tests.handlers.raft.support import append, install, replica

COUNTED = EntryKind.define("states.counted", 180)
ASK = MessageType.define("states.ask", 1780)


class Sum(Extension):
    """What it saves depends on all that it was given."""

    def __init__(self, node):
        self.given = []

    @delivers(COUNTED)
    def add(self, entry):
        self.given.append(entry.payload)

    def save(self):
        return b",".join(self.given)

    def load(self, data):
        self.given = data.split(b",") if data else []


class Named(Sum):
    name = "second"

    @delivers(EntryKind.COMMAND)
    def add(self, entry):
        self.given.append(entry.payload)


class Forgetful(Extension):
    @handles(ASK)
    def ask(self, message):
        return 1


def table_of(*classes):
    table = raft_handlers()
    table.use(*classes)
    return table


def handed_out(*classes, kinds=(COUNTED,)):
    """A follower whose host was given six entries of these kinds in turn, and has reported none as applied."""
    raft = replica(2, term=1, leader=1, handlers=table_of(*classes))
    entries = [entry(index, kinds[index % len(kinds)]) for index in range(1, 7)]
    raft.step(append(1, 1, (0, 0), entries, commit=6))
    raft.persisted(raft.ready())
    assert len(raft.ready().committed) == 6
    return raft


def entry(index, kind=COUNTED):
    return Entry(index, 1, kind, b"%d" % index)


class TestSaving:
    def test_it_waits_until_exactly_that_index_is_delivered(self):
        """Though the host reports far more at once: commands were applied in one go."""
        raft, saved = handed_out(Sum), []
        raft.save_extensions(4, saved.append)
        raft.applied(2)
        assert saved == []
        raft.applied(6)
        assert [cbor2.loads(state) for state in saved] == [{"Sum": b"1,2,3,4"}]
        assert raft.extension(Sum).given == [b"1", b"2", b"3", b"4", b"5", b"6"]

    def test_it_is_done_at_once_where_that_index_is_the_last(self):
        raft, saved = handed_out(Sum), []
        raft.applied(3)
        raft.save_extensions(3, saved.append)
        assert [cbor2.loads(state) for state in saved] == [{"Sum": b"1,2,3"}]

    def test_several_may_wait_in_any_order(self):
        raft, saved = handed_out(Sum), []
        for index in (5, 2, 6, 2):
            raft.save_extensions(
                index, lambda state, index=index: saved.append((index, cbor2.loads(state)["Sum"]))
            )
        raft.applied(6)
        assert saved == [(2, b"1,2"), (2, b"1,2"), (5, b"1,2,3,4,5"), (6, b"1,2,3,4,5,6")]

    def test_the_membership_is_that_of_the_index_too(self):
        change = ConfigChange((Change(ChangeType.REMOVE, 3),)).encode()

        class Members(Sum):
            def __init__(self, node):
                super().__init__(node)
                self.node = node

            def save(self):
                return bytes(sorted(self.node.membership.voters))

        raft = replica(2, term=1, leader=1, handlers=table_of(Members))
        entries = [entry(1), Entry(2, 1, EntryKind.CONFIG_CHANGE, change), entry(3)]
        raft.step(append(1, 1, (0, 0), entries, commit=3))
        raft.persisted(raft.ready())
        raft.ready()
        saved = []
        for index in (1, 3):
            raft.save_extensions(index, saved.append)
        raft.applied(3)
        assert [list(cbor2.loads(state)["Members"]) for state in saved] == [[1, 2, 3], [1, 2]]

    def test_all_that_save_have_a_part_under_their_names(self):
        raft, saved = handed_out(Sum, Forgetful, Named, kinds=(COUNTED, EntryKind.COMMAND)), []
        raft.applied(6)
        raft.save_extensions(6, saved.append)
        assert cbor2.loads(saved[0]) == {"Sum": b"2,4,6", "second": b"1,3,5"}

    def test_one_that_was_given_nothing_yet_is_no_part_of_snapshots(self):
        """A replica that does not have it yet can load them: records are logged when all have it."""
        raft, saved = handed_out(Named, kinds=(EntryKind.NO_OP,)), []
        raft.applied(6)
        raft.save_extensions(6, saved.append)
        assert saved == [b""]
        replica(3, handlers=raft_handlers()).load_extensions(saved[0], 6)

    def test_one_that_was_loaded_is_a_part_of_the_next_snapshot(self):
        """Though nothing was delivered since: else what it loaded would be gone at the next start."""
        raft, saved = handed_out(Named, kinds=(EntryKind.NO_OP,)), []
        raft.load_extensions(cbor2.dumps({"second": b"a,b"}), 0)
        raft.applied(6)
        raft.save_extensions(6, saved.append)
        assert [cbor2.loads(state) for state in saved] == [{"second": b"a,b"}]

    @pytest.mark.parametrize("classes", [(), (Forgetful,)], ids=["no extension", "none that saves"])
    def test_where_none_saves_there_is_nothing(self, classes):
        raft, saved = replica(handlers=table_of(*classes)), []
        raft.save_extensions(0, saved.append)
        assert saved == [b""]

    def test_a_witness_saves_nothing(self):
        raft = replica(2, voters=(1,), witnesses=(2,), handlers=table_of(Sum))
        saved = []
        raft.save_extensions(0, saved.append)
        assert saved == [b""]

    def test_what_is_past_cannot_be_saved(self):
        raft = handed_out(Sum)
        raft.applied(4)
        with pytest.raises(ConfigError, match="index=3: entries up to 4 are delivered already"):
            raft.save_extensions(3, print)

    def test_what_a_leaders_snapshot_overtakes_is_given_up(self):
        raft, saved = handed_out(Sum), []
        for index in (4, 9, 12):
            raft.save_extensions(index, lambda state, index=index: saved.append((index, state)))
        raft.step(install(1, 1, (9, 1), Membership({1, 2, 3})))
        raft.persisted(raft.ready())
        raft.load_extensions(cbor2.dumps({"Sum": b"nine"}), 9)
        raft.applied(9)
        assert [(index, state and cbor2.loads(state)) for index, state in saved] == [
            (4, None),
            (9, {"Sum": b"nine"}),
        ]

    def test_what_is_applied_before_that_snapshot_is_loaded_may_be_saved(self):
        raft, saved = handed_out(Sum), []
        raft.save_extensions(4, saved.append)
        raft.step(install(1, 1, (9, 1), Membership({1, 2, 3})))
        raft.persisted(raft.ready())
        raft.applied(6)
        assert [cbor2.loads(state) for state in saved] == [{"Sum": b"1,2,3,4"}]

    def test_entries_that_are_reported_before_that_snapshot_is_loaded_are_delivered_though_it_stands_for_them(
        self,
    ):
        """One that was requested may reach no further than what was handed out before."""
        raft, saved = handed_out(Sum), []
        raft.step(install(1, 1, (6, 1), Membership({1, 2, 3})))
        raft.persisted(raft.ready())
        raft.applied(6)
        raft.save_extensions(6, saved.append)
        raft.load_extensions(cbor2.dumps({"Sum": b"six"}), 6)
        raft.applied(6)
        raft.save_extensions(6, saved.append)
        assert [cbor2.loads(state)["Sum"] for state in saved] == [b"1,2,3,4,5,6", b"six"]

    @pytest.mark.parametrize(
        ("result", "named"),
        [
            pytest.param("text", "Bad.save failed at index 6: it returned str, not bytes", id="no bytes"),
            pytest.param(None, "it returned NoneType", id="nothing"),
            pytest.param(
                bytes(extension_states.MAX_SAVED_BYTES + 1),
                "16777217 bytes are saved, and 16777216",
                id="too much",
            ),
            pytest.param(OSError("no"), r"Bad.save failed at index 6: OSError\('no'\)", id="an error"),
        ],
    )
    @pytest.mark.parametrize("at_once", [False, True])
    def test_a_mistake_ends_the_replica(self, result, named, at_once):
        class Bad(Sum):
            def save(self):
                if isinstance(result, Exception):
                    raise result
                return result

        raft, saved = handed_out(Bad), []
        fails = partial(raft.applied, 6)
        if at_once:
            raft.applied(6)
            fails = partial(raft.save_extensions, 6, saved.append)
        else:
            raft.save_extensions(6, saved.append)
        with pytest.raises(ExtensionFailed, match=named) as caught:
            fails()
        assert (saved, raft.tally.broken) == ([], caught.value)
        assert raft.tally.failed == {(raft.state, "Bad.save"): 1}

    def test_the_bound_is_that_of_all_together(self):
        half = bytes(extension_states.MAX_SAVED_BYTES // 2)

        class One(Sum):
            def save(self):
                return half

        class Two(Named):
            def save(self):
                return half + b"x"

        raft = handed_out(One, Two, kinds=(COUNTED, EntryKind.COMMAND))
        raft.applied(6)
        with pytest.raises(ExtensionFailed, match=r"Two.save .* 16777217 bytes"):
            raft.save_extensions(6, print)


class TestLoading:
    def test_each_is_given_its_part_and_goes_on_from_there(self):
        raft = replica(2, term=1, leader=1, handlers=table_of(Sum, Forgetful, Named))
        raft.step(install(1, 1, (5, 1)))
        raft.persisted(raft.ready())
        raft.load_extensions(cbor2.dumps({"second": b"a,b", "Sum": b"1,2"}), 5)
        raft.applied(5)
        raft.step(append(1, 1, (5, 1), [entry(6)], commit=6))
        raft.persisted(raft.ready())
        raft.applied(raft.ready().committed[-1].index)
        assert (raft.extension(Sum).given, raft.extension(Named).given) == ([b"1", b"2", b"6"], [b"a", b"b"])

    def test_what_it_saves_it_loads(self):
        raft, saved = handed_out(Sum, Named), []
        raft.applied(6)
        raft.save_extensions(6, saved.append)
        other = replica(3, handlers=table_of(Sum, Named))
        other.load_extensions(saved[0], 6)
        assert other.extension(Sum).given == raft.extension(Sum).given

    @pytest.mark.parametrize("data", [b"", cbor2.dumps({})], ids=["nothing", "no parts"])
    def test_one_without_a_part_stays_as_it_is(self, data):
        raft = handed_out(Sum)
        raft.applied(2)
        raft.load_extensions(data, 2)
        assert raft.extension(Sum).given == [b"1", b"2"]

    @pytest.mark.parametrize("name", ["gone", "Forgetful"], ids=["not in the table", "without load"])
    def test_a_part_of_one_that_is_not_there_stops_the_replica_and_changes_nothing(self, name):
        raft = replica(handlers=table_of(Sum, Forgetful))
        with pytest.raises(MissingExtension, match=f"index 5 has a part .* the extension {name!r} has saved"):
            raft.load_extensions(cbor2.dumps({"Sum": b"1", name: b"x"}), 5)
        assert raft.extension(Sum).given == []

    def test_a_mistake_ends_the_replica(self):
        class Bad(Sum):
            def load(self, data):
                raise ValueError("of version 2")

        raft = replica(handlers=table_of(Bad))
        with pytest.raises(
            ExtensionFailed, match=r"Bad.load failed at index 5: ValueError\('of version 2'\)"
        ):
            raft.load_extensions(cbor2.dumps({"Bad": b"1"}), 5)
        assert isinstance(raft.tally.broken, ExtensionFailed)
        assert raft.tally.failed == {(raft.state, "Bad.load"): 1}

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"\xff", id="no CBOR"),
            pytest.param(cbor2.dumps([b"x"]), id="a list"),
            pytest.param(cbor2.dumps({"Sum": "text"}), id="text"),
            pytest.param(cbor2.dumps({b"Sum": b"x"}), id="a name of bytes"),
            pytest.param(cbor2.dumps({"Sum": {"a": b"x"}}), id="a map in a map"),
            pytest.param(cbor2.dumps({"Sum": b"x"}) + b"x", id="bytes behind it"),
            pytest.param(cbor2.dumps({str(number): b"" for number in range(3000)}), id="too many parts"),
            pytest.param(bytes(extension_states.MAX_SAVED_BYTES + (1 << 16) + 1), id="too much"),
        ],
    )
    def test_what_nobody_has_saved_is_corrupt(self, data):
        raft = replica(handlers=table_of(Sum))
        with pytest.raises(CorruptData, match="extensions have saved"):
            raft.load_extensions(data, 5)
        assert raft.extension(Sum).given == []


def test_a_leader_saves_too():
    raft = replica(state=State.LEADER, terms=(1,), handlers=table_of(Named))
    raft.step(Message(MessageType.REPLICATE_RESP, sender=2, term=raft.term, log_index=2))
    saved = []
    raft.save_extensions(2, saved.append)
    raft.applied(raft.ready().committed[-1].index)
    assert [cbor2.loads(state) for state in saved] == [{"second": b"x"}]
