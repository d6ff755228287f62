"""Any history of requests, restarts and kills leaves the logs that plain lists would be.

The segments are tiny, so that they are dropped, used again and moved from all the time.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from drakkar.actors.log.driver import InlineDriver
from drakkar.actors.log.files import DiskFiles, Files, MemoryFiles
from drakkar.actors.log.records import ReplicaKey
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.raft.entries import Entry, Run
from drakkar.handlers.raft.state import HardState, Membership, Snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actors.log.support import MEMBERS, OWNER, RECORD, Host, Waiter, check, of

TINY = 1 << 12
KEYS = [(1, 1), (1, 2), (7, 1)]

APPEND = st.tuples(
    st.just("append"),
    st.integers(0, 6),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from([2, 60, 500, 3000]),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.one_of(
            APPEND,
            APPEND,
            APPEND,
            st.tuples(st.just("compact"), st.integers(0, 12)),
            st.tuples(st.just("compact"), st.integers(0, 12)),
            st.tuples(st.just("install"), st.integers(1, 5), st.integers(0, 3)),
            st.tuples(st.just("snapshot"), st.integers(0, 6)),
            st.tuples(st.just("hard"), st.integers(1, 3), st.integers(0, 3), st.integers(0, 20)),
            st.tuples(st.just("together"), st.integers(2, 5), st.integers(0, 1 << 16)),
            st.tuples(st.just("remove")),
            st.tuples(st.just("import_"), st.integers(1, 9)),
            st.tuples(st.just("restart")),
            st.tuples(st.just("kill")),
        ),
    ),
    max_size=40,
)


@dataclass
class Model:
    """A log as a list. Deliberately dumb."""

    record: Bootstrap = RECORD
    entries: list[Entry] = field(default_factory=list)
    marker: tuple[int, int] = (0, 0)
    hard: HardState = field(default_factory=HardState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    term: int = 1

    @property
    def last(self) -> int:
        return self.marker[0] + len(self.entries)

    @property
    def hard_state(self) -> HardState:
        commit = min(max(self.hard.commit, self.marker[0]), self.last)
        return HardState(self.hard.term, self.hard.vote, commit)

    def term_at(self, index: int) -> int:
        return self.marker[1] if index == self.marker[0] else self.entries[index - self.marker[0] - 1].term

    def cut_to(self, index: int) -> None:
        """Drop the entries up to an index."""
        gone = max(min(index, self.last) - self.marker[0], 0)
        if gone:
            self.marker = (self.entries[gone - 1].index, self.entries[gone - 1].term)
            del self.entries[:gone]


def payloads(model: Model, first: int, count: int, size: int) -> Run:
    return Run(
        first,
        model.term,
        [b"%d:%d;" % (model.term, index) * (size // 4) for index in range(first, first + count)],
    )


class World:
    """A store, and what all of its replicas are; None is one that was removed."""

    def __init__(self, make_files: Callable[[], Files]) -> None:
        self.make_files = make_files
        self.files = make_files()
        self.host = Host(self.opened)
        self.models: dict[ReplicaKey, Model | None] = {}

    def opened(self) -> LogStore:
        self.files = self.make_files()
        store = LogStore(self.files, OWNER, segment_bytes=TINY)
        store.start(InlineDriver())
        return store

    def step(self, key: ReplicaKey, step: tuple[object, ...]) -> None:
        if step[0] not in {"restart", "kill", "remove", "import_"} and self.models.get(key) is None:
            self.begin(key)
        elif (known := self.models.get(key)) is not None or step[0] not in {"append", "compact", "together"}:
            getattr(self, str(step[0]))(key, known, *step[1:])

    def begin(self, key: ReplicaKey) -> None:
        if key in self.models:
            with pytest.raises(ConfigError, match="never used again"):
                self.host.bootstrap(*key)
            return
        self.host.bootstrap(*key)
        self.models[key] = Model()
        self.host.log(*key)

    def append(self, key: ReplicaKey, model: Model, back: int, count: int, newer: int, size: int) -> None:
        assert self.host.save(self.run(model, back, count, newer, size), shard=key[0], replica=key[1]) is None

    @staticmethod
    def run(model: Model, back: int, count: int, newer: int, size: int) -> Run:
        # What a snapshot covers is committed, and never replaced.
        first = max(model.last + 1 - back, model.marker[0] + 1, model.snapshot.index + 1)
        if first <= model.last:
            newer = max(newer, 1)
        model.term += newer
        added = payloads(model, first, count, size)
        model.entries = model.entries[: first - model.marker[0] - 1] + of(added)
        return added

    def compact(self, key: ReplicaKey, model: Model, beyond: int) -> None:
        index = model.marker[0] + beyond
        self.host.compact(index, *key)
        model.cut_to(index)

    def install(self, key: ReplicaKey, model: Model, ahead: int, count: int) -> None:
        model.term += 1
        snapshot = Snapshot(model.marker[0] + ahead, model.term, MEMBERS, b"file")
        runs = [payloads(model, snapshot.index + 1, count, 40)] if count else []
        assert self.host.save(*runs, snapshot=snapshot, shard=key[0], replica=key[1]) is None
        model.snapshot, model.marker = snapshot, (snapshot.index, snapshot.term)
        model.entries = of(*runs)

    def snapshot(self, key: ReplicaKey, model: Model, back: int) -> None:
        index = max(model.last - back, model.marker[0])
        if index > model.snapshot.index:
            model.snapshot = Snapshot(index, model.term_at(index), MEMBERS, b"taken", size=3)
            assert self.host.record(model.snapshot, *key) is None

    def hard(self, key: ReplicaKey, model: Model, newer: int, vote: int, commit: int) -> None:
        model.hard = HardState(model.hard.term + newer, vote, commit)
        assert self.host.save(hard=model.hard, shard=key[0], replica=key[1]) is None

    def together(self, key: ReplicaKey, model: Model, count: int, seed: int) -> None:
        """Several requests of several replicas become one record."""
        dice, waiter, store = random.Random(seed), Waiter(), self.host.store
        store._flushing = True  # as while another record is being flushed
        for _ in range(count):
            each = dice.choice([key, *(other for other, known in self.models.items() if known is not None)])
            known = self.models[each]
            assert known is not None
            if dice.random() < 0.8:
                added = self.run(known, dice.randint(0, 5), dice.randint(1, 3), dice.randint(0, 1), 60)
                known.hard = HardState(known.hard.term + 1, 1, 0)
                store.save(AppendRequest(*each, known.hard, [added], done=waiter))
            else:
                known.term += 1
                snapshot = Snapshot(known.last + 1, known.term, MEMBERS)
                known.snapshot, known.marker, known.entries = snapshot, (snapshot.index, known.term), []
                store.save(AppendRequest(*each, None, (), snapshot, done=waiter))
        store._flushing = False
        store._pump()
        assert waiter.outcomes == [None] * count

    def remove(self, key: ReplicaKey, _model: Model | None) -> None:
        self.host.remove(*key)
        self.models[key] = None

    def import_(self, key: ReplicaKey, model: Model | None, index: int) -> None:
        record = Bootstrap(Membership({index: "a:1"}), state_machine="Imported")
        term = 1 if model is None else model.term + 1
        new = Model(record, marker=(index, term), hard=HardState(term), term=term)
        new.snapshot = Snapshot(index, term, MEMBERS, b"imported")
        self.host.ask(lambda done: self.host.store.import_replica(*key, record, new.snapshot, new.hard, done))
        self.models[key] = new
        self.host.log(*key)

    def restart(self, _key: ReplicaKey, _model: Model | None) -> None:
        self.host.restart()
        self._open_all()

    def kill(self, _key: ReplicaKey, _model: Model | None) -> None:
        self.files.close()
        self.host.store = self.opened()
        self._open_all()

    def _open_all(self) -> None:
        for key, model in self.models.items():
            if model is not None:
                self.host.log(*key)

    def check(self) -> None:
        self.check_store(self.host.store)
        # What a start would find, if the process were killed now.
        seen = LogStore(self.make_files(), OWNER, create=False, read_only=True)
        self.check_store(seen)
        assert seen.status.live_bytes == self.host.store.status.live_bytes
        seen.close()

    def check_store(self, store: LogStore) -> None:
        assert store.replicas() == sorted(key for key, model in self.models.items() if model is not None)
        for key, model in self.models.items():
            log = store.open(*key)
            if model is None:
                assert log is None
                assert store.removed(*key)
                continue
            assert log is not None
            check(log, model.entries, model.marker[0] + 1, model.marker[1])
            assert (log.hard_state, log.snapshot, log.bootstrap) == (
                model.hard_state,
                model.snapshot,
                model.record,
            )


def play(make_files: Callable[[], Files], steps: list[tuple[ReplicaKey, tuple[object, ...]]]) -> World:
    world = World(make_files)
    try:
        for key, step in steps:
            world.step(key, step)
            world.check()
    finally:
        world.host.close()
    return world


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_any_history_leaves_the_logs_that_lists_would_be(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples=100 if kind == "memory" else 25, deadline=None)
    @given(steps=STEPS)
    def any_history(steps: list[tuple[ReplicaKey, tuple[object, ...]]]) -> None:
        memory, path = MemoryFiles(), tmp_path_factory.mktemp("model") / "log"
        play(lambda: memory if kind == "memory" else DiskFiles(path), steps)

    any_history()


@pytest.mark.parametrize("seed", range(10))
def test_a_long_history_drops_and_moves_a_hundred_segments(seed: int) -> None:
    """Hypothesis tries short ones."""
    dice, memory = random.Random(seed), MemoryFiles()
    steps: list[tuple[ReplicaKey, tuple[object, ...]]] = []
    for _ in range(400):
        # The last replica writes little, so that what it has must be moved.
        key = dice.choices(KEYS, (10, 5, 1))[0]
        what = dice.choices(
            [
                "append",
                "compact",
                "install",
                "snapshot",
                "hard",
                "together",
                "remove",
                "import_",
                "restart",
                "kill",
            ],
            (50, 20, 2, 5, 5, 8, 0.2, 1, 2, 2),
        )[0]
        arguments = {
            "append": (
                dice.randint(0, 4) * dice.randint(0, 1),
                dice.randint(1, 4),
                dice.randint(0, 1),
                dice.choice((20, 200, 900)),
            ),
            "compact": (dice.randint(0, 12),),
            "install": (dice.randint(1, 5), dice.randint(0, 3)),
            "snapshot": (dice.randint(0, 6),),
            "hard": (1, dice.randint(0, 3), dice.randint(0, 20)),
            "together": (dice.randint(2, 5), dice.randint(0, 1 << 16)),
            "import_": (dice.randint(1, 9),),
        }.get(what, ())
        steps.append((key, (what, *arguments)))
    world = play(lambda: memory, steps)
    assert world.host.store._segments.active.number > 100
    assert world.host.store.status.segments < 30
