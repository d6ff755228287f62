"""The check for linearizability: small histories with known verdicts, random ones against a simple check, large ones."""

import heapq
import random
from dataclasses import dataclass, field, replace
from itertools import count

import pytest

from tests.simulation.linearizability import NotLinearizable, Operation, Register, _Search, check

KINDS = ("get", "put", "add", "cas")


def op(kind, argument, result, invoked, returned, key="k", client=1):
    return Operation(client, key, kind, argument, result, invoked, returned)


def get(result, invoked, returned, **who):
    return op("get", None, result, invoked, returned, **who)


def put(value, before, invoked, returned, **who):
    return op("put", value, before, invoked, returned, **who)


def add(text, after, invoked, returned):
    return op("add", text, after, invoked, returned)


def cas(old, new, swapped, invoked, returned):
    return op("cas", (old, new), swapped, invoked, returned)


def unknown(kind, argument, invoked):
    # The result must not matter, since no client heard it.
    return op(kind, argument, "not heard", invoked, None)


def linearizable(history, model=None):
    try:
        check(history, *([model] if model else []))
    except NotLinearizable:
        return False
    return True


class Plain:
    """A register without `narrowed` and `alike`."""

    initial = None
    step = Register().step


class Silent:
    """A register whose put and add return nothing, so more histories are linearizable."""

    initial = None

    def step(self, state, operation):
        fits, after = Register().step(state, operation)
        return fits or operation.kind in {"put", "add"}, after


MODELS = pytest.mark.parametrize("model", [Register(), Plain()], ids=["register", "plain model"])
A, B, C = put("a", None, 0, 1), put("b", "a", 2, 3), put("c", "b", 4, 5)


@MODELS
@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        pytest.param([], True, id="nothing happened"),
        pytest.param([get(None, 0, 1)], True, id="a read of nothing"),
        pytest.param([get("a", 0, 1)], False, id="a read from nowhere"),
        pytest.param([A, B, get("b", 4, 5)], True, id="one after the other"),
        pytest.param([get("b", 4, 5), B, A], True, id="the order of the list does not matter"),
        pytest.param([A, B, get("a", 4, 5)], False, id="a stale read"),
        pytest.param([A, B, get("a", 2.5, 5)], True, id="a read that began before the write ended"),
        pytest.param([A, B, get("a", 3, 5)], True, id="that began when it ended: concurrent"),
        pytest.param([A, B, get("a", 3.01, 5)], False, id="that began right after it ended"),
        pytest.param([A, put("b", "a", 1, 1), get("b", 1, 1)], True, id="all at one moment"),
        pytest.param([A, put("b", None, 2, 3)], False, id="a lost update"),
        pytest.param([put("a", None, 0, 3), put("b", None, 0, 3)], False, id="two that came first"),
        pytest.param([put("a", "b", 0, 3), put("b", "a", 0, 3)], False, id="each before the other"),
        pytest.param([put("a", "b", 0, 3), put("b", None, 0, 3)], True, id="one of the two orders"),
        pytest.param([A, put("b", "a", 2, 9), get("b", 3, 4), get("a", 5, 6)], False, id="read, then unread"),
        pytest.param([A, put("b", "a", 2, 9), get("a", 3, 4), get("b", 5, 6)], True, id="old, then new"),
        pytest.param(
            [A, put("b", "a", 2, 3), put("c", "b", 2, 9), get("b", 4, 8), get("c", 4, 5), get("b", 6, 7)],
            False,
            id="two readers see two orders",
        ),
        pytest.param([A, unknown("put", "b", 2), get("b", 8, 9)], True, id="an unknown write seen later"),
        pytest.param([A, unknown("put", "b", 2), get("a", 8, 9)], True, id="an unknown write never seen"),
        pytest.param(
            [A, unknown("put", "b", 2), get("a", 4, 5), get("b", 6, 7)],
            True,
            id="an unknown write that takes its time",
        ),
        pytest.param(
            [A, unknown("put", "b", 2), get("b", 4, 5), get("a", 6, 7)],
            False,
            id="an unknown write that is undone",
        ),
        pytest.param([A, get("b", 2, 3), unknown("put", "b", 4)], False, id="seen before it was invoked"),
        pytest.param(
            [unknown("put", "a", 0), get("a", 1, 2), B, get("a", 4, 5)],
            False,
            id="an unknown write seen twice",
        ),
        pytest.param(
            [unknown("put", "a", 0), unknown("put", "a", 0), get("a", 1, 2), B, get("a", 4, 5)],
            True,
            id="two unknown writes of one value",
        ),
        pytest.param(
            [unknown("put", "a", 0), get("a", 1, 2), B, unknown("put", "a", 6), get("a", 4, 5)],
            False,
            id="of which the second comes too late",
        ),
        pytest.param([A, unknown("get", None, 0), get("a", 2, 3)], True, id="an unknown read says nothing"),
        pytest.param(
            [unknown("add", "b", 0), unknown("add", "a", 0), get("abc", 2, 3), unknown("add", "c", 1)],
            True,
            id="a chain of unknown operations",
        ),
        pytest.param(
            [add("x", "x", 0, 1), add("y", "xy", 2, 3), get("xy", 4, 5)], True, id="texts that grow"
        ),
        pytest.param([add("x", "x", 0, 1), add("y", "y", 2, 3)], False, id="a text that was forgotten"),
        pytest.param([add("x", "x", 0, 1), get("x", 2, 3), add("", "x", 4, 5)], True, id="nothing added"),
        pytest.param(
            [
                A,
                unknown("add", "b", 0),
                unknown("put", "ab", 0),
                get("ab", 2, 3),
                put("c", "ab", 4, 5),
                get("cb", 6, 7),
            ],
            True,
            id="of two explanations the second lasts",
        ),
        pytest.param(
            [
                A,
                unknown("add", "b", 0),
                unknown("put", "ab", 0),
                get("ab", 2, 3),
                put("c", "ab", 4, 5),
                get("ab", 6, 7),
            ],
            True,
            id="of two explanations the first lasts",
        ),
        pytest.param(
            [A, unknown("cas", ("z", "b"), 0), unknown("cas", ("a", "b"), 0), get("b", 2, 3)],
            True,
            id="an unknown swap of two",
        ),
        pytest.param([cas(None, "a", True, 0, 1), cas(None, "b", False, 2, 3)], True, id="first come"),
        pytest.param([cas(None, "a", True, 0, 2), cas(None, "b", True, 1, 3)], False, id="two winners"),
        pytest.param([cas(None, "a", False, 0, 1)], False, id="refused without a reason"),
        pytest.param(
            [A, unknown("put", "z", 0), cas("a", "b", False, 2, 3)], True, id="refused by a value unseen"
        ),
        pytest.param(
            [A, unknown("put", "z", 0), cas("a", "b", False, 2, 3), get("a", 4, 5)],
            False,
            id="which then must still be there",
        ),
        pytest.param(
            [A, unknown("add", "z", 0), cas("a", "b", False, 2, 3), put("c", "az", 4, 5)],
            True,
            id="refused by a text that grew",
        ),
        pytest.param([A, get("a", 2, 3), get(None, 2, 3, key="other")], True, id="keys are apart"),
        pytest.param([A, get("a", 2, 3), get("a", 2, 3, key="other")], False, id="and judged each"),
    ],
)
def test_verdict(history, verdict, model):
    assert linearizable(history, model) is verdict


# -- A simple check that tries every order.


def dumb(left, model, state=None):
    if all(each.returned is None for each in left):
        return True
    horizon = min(each.returned for each in left if each.returned is not None)
    for each in left:
        fits, after = model.step(state, each)
        others = [other for other in left if other is not each]
        if fits and each.invoked <= horizon and dumb(others, model, after):
            return True
    return False


def random_history(random):
    """Return a random history; about half of them are linearizable."""
    history = []
    clients = random.randint(1, 4)
    clocks = [0] * clients
    texts = ["a", "b", "ab", "ba", ""]
    loss = random.choice([0.2, 0.5])
    kinds = random.choice([KINDS, ("get", "put"), ("get", "add"), ("put", "cas"), ("get", "add", "cas")])
    for _ in range(random.randint(2, 8)):
        client, kind = random.randrange(clients), random.choice(kinds)
        invoked = clocks[client] + random.randint(0, 2)
        returned = clocks[client] = invoked + random.randint(0, 4)
        argument = {
            "get": None,
            "put": random.choice(texts),
            "add": random.choice(texts),
            "cas": (random.choice([None, *texts]), random.choice(texts)),
        }[kind]
        lost = random.random() < loss
        history.append(Operation(client, "k", kind, argument, None, invoked, None if lost else returned))
    return answered(random, history, random.choice([0, 0, 1, 1, 2]))


def answered(random, history, lies):
    """Add the answers of a register with effects at random moments, and `lies` wrong ones."""
    state = None
    known = [each for each in history if each.returned is not None]

    def moment(each):
        return random.uniform(each.invoked, 30 if each.returned is None else each.returned)

    for each in sorted(history, key=moment):
        if each.returned is not None or random.random() < 0.6:
            each.result, state = answer(each, state)
    for each in random.sample(known, min(lies, len(known))):
        each.result = (
            random.random() < 0.5 if each.kind == "cas" else random.choice([None, "a", "b", "ab", ""])
        )
    return history


def answer(operation, state):
    """Return a register's answer and its new value. This does not use the model, which it is meant to check."""
    if operation.kind == "get":
        return state, state
    if operation.kind == "put":
        return state, operation.argument
    if operation.kind == "add":
        return (state or "") + operation.argument, (state or "") + operation.argument
    old, new = operation.argument
    return (True, new) if state == old else (False, state)


@pytest.mark.parametrize("model", [Register(), Plain(), Silent()], ids=["register", "plain model", "silent"])
@pytest.mark.parametrize(
    "depth_first", [True, False], ids=["depth first, then breadth first", "breadth first"]
)
def test_it_agrees_with_a_check_that_tries_every_order(model, depth_first, monkeypatch):
    if not depth_first:
        monkeypatch.setattr(_Search, "_depth_first", lambda *_: False)
    verdicts = []
    for seed in range(3000):
        history = random_history(random.Random(seed))
        verdicts.append(dumb(history, model))
        assert linearizable(history, model) is verdicts[-1], (seed, *map(str, history))
    # Both verdicts are frequent, else the agreement would mean little.
    assert 600 < sum(verdicts) < 2400


# -- Large histories: every operation reaches one register at its own moment.


@dataclass
class Load:
    """Clients that send one request after the other, and sometimes get no answer."""

    operations: int
    keys: int = 1
    clients: int = 8
    kinds: tuple[str, ...] = KINDS
    lost: float = 0.0
    seed: int = 1
    states: dict = field(default_factory=dict)

    def history(self):
        self.random = random.Random(self.seed)
        self.names = count()
        history = []
        # Time, number, operation (None: the client sends the next one; else it takes effect now), and client.
        events = [(0.0, client, None, client) for client in range(self.clients)]
        numbers = count(self.clients)
        while events:
            now, _, operation, client = heapq.heappop(events)
            if operation is not None:
                operation.result, self.states[operation.key] = answer(
                    operation, self.states.get(operation.key)
                )
                continue
            if len(history) == self.operations:
                continue
            operation, effect, free = self.invoke(client, now)
            history.append(operation)
            if effect is not None:
                heapq.heappush(events, (effect, next(numbers), operation, client))
            heapq.heappush(events, (free, next(numbers), None, client))
        return history

    def invoke(self, client, now):
        key = f"key {self.random.randrange(self.keys)}"
        kind = self.random.choice(self.kinds)
        returned = now + self.random.expovariate(1)
        name = f"{next(self.names)},"
        argument = {"get": None, "put": name, "add": name, "cas": (self.states.get(key), name)}[kind]
        operation = Operation(client, key, kind, argument, None, now, returned)
        effect = self.random.uniform(now, returned)
        if self.random.random() < self.lost:
            operation.returned = None
            # It takes effect within the usual time, long after, or never.
            effect = self.random.choice([effect, now + self.random.expovariate(0.1), None])
        return operation, effect, returned + self.random.expovariate(1)


def corrupted(history, forge):
    """Return the same history with one late answer of a read replaced."""
    known = [each for each in history if each.kind == "get" and each.returned is not None]
    victim = known[len(known) * 3 // 4]
    return [replace(each, result=forge(history, victim)) if each is victim else each for each in history]


def never_written(_history, _victim):
    return "from nowhere"


def overwritten(history, victim):
    """Return a value that was read long before, and overwritten since."""
    reads = [each for each in history if each.kind == "get" and each.key == victim.key and each.returned]
    past = [each.result for each in reads if each.returned < victim.invoked and each.result is not None]
    return past[len(past) // 2]


LOADS = pytest.mark.parametrize(
    "load",
    [
        pytest.param(Load(5000, keys=10, lost=0.05), id="5000 operations, 10 keys"),
        pytest.param(Load(5000, keys=10, lost=0.3), id="5000 operations, 10 keys, many lost"),
        pytest.param(Load(1000, kinds=("get", "add"), lost=0.1), id="texts of one key"),
        pytest.param(Load(1000, kinds=("get", "put"), lost=0.2), id="100 unknown writes of one key"),
        pytest.param(Load(1000, lost=0.1), id="all kinds, one key"),
    ],
)


@LOADS
@pytest.mark.timeout(30)
def test_a_large_history_of_one_register_passes(load):
    history = load.history()
    assert len(history) == load.operations
    check(history)


@LOADS
@pytest.mark.parametrize("forge", [never_written, overwritten])
@pytest.mark.timeout(30)
def test_one_wrong_answer_in_a_large_history_is_found(load, forge):
    history = load.history()
    with pytest.raises(NotLinearizable) as caught:
        check(corrupted(history, forge))
    assert len(str(caught.value).splitlines()) <= 30


@pytest.mark.timeout(30)
@MODELS
def test_a_hundred_unknown_writes_that_wait_to_the_end_cost_little(model):
    """None is seen until all others are done, so any of them could be next at any time."""
    lost = [unknown("put", f"lost {each}", 0) for each in range(100)]
    known = [put(each, each - 1 if each else None, each + 1, each + 1.5) for each in range(800)]
    seen = [get(f"lost {each}", 1000 + each, 1000.5 + each) for each in range(100)]
    check(lost + known + seen, model)
    assert not linearizable([*lost, *known, *seen, get("lost 1", 2000, 2001)], model)


# -- The explanation


def test_the_explanation_shows_what_fits_and_what_does_not():
    with pytest.raises(NotLinearizable) as caught:
        check(
            [
                A,
                get("a", 2, 3, client=2),
                put("b", "a", 2, 9),
                get("b", 3.5, 4),
                get("a", 5, 6),
                get("b", 7, 8),
            ]
        )
    assert str(caught.value).splitlines() == [
        "key 'k' is not linearizable",
        "these fit in this order:",
        "  [0, 1] client 1: put('a') -> None, then 'a'",
        "  [2, 3] client 2: get() -> 'a', then 'a'",
        "  [2, 9] client 1: put('b') -> 'a', then 'b'",
        "  [3.5, 4] client 1: get() -> 'b', then 'b'",
        "and nowhere before the first of them returned:",
        "  [5, 6] client 1: get() -> 'a'",
    ]


def test_the_explanation_is_bounded_for_any_history():
    growing = [add("x" * 50, "x" * 50 * each, each, each + 0.5) for each in range(1, 101)]
    nonsense = [get(f"{each}" * 5000, 200 + each, 900 + each) for each in range(100)]
    with pytest.raises(NotLinearizable) as caught:
        check(growing + nonsense)
    text = str(caught.value)
    assert "after 88 others" in text
    assert "and 88 more" in text
    assert len(text.splitlines()) <= 30
    assert max(map(len, text.splitlines())) < 200


def test_an_invalid_history_is_refused():
    with pytest.raises(ValueError, match="returned before it was invoked"):
        check([get(None, 2, 1)])
    with pytest.raises(ValueError, match="'pop' is not an operation"):
        check([op("pop", None, None, 0, 1)])
