"""What is no state machine is refused at the start, and the error says what one looks like."""

import functools
import io

import pytest
from drakkar.actors.machine.no_commands import NoCommands
from drakkar.actors.machine.state_machine import (
    MAX_REFUSAL_CHARS,
    ConcurrentStateMachine,
    DiskStateMachine,
    StateMachine,
    make_machine,
    refusal,
    type_name,
)
from drakkar.handlers.errors import ConfigError, Refused


def kind(base=StateMachine, name="Mine", **members):
    return type(name, (base,), members)


def takes_one(self, _one):
    return None


def takes_two(self, _one, _two):
    return None


def takes_none(self):
    return None


async def is_async(self, _one):
    return None


def is_generator(self, _one):
    yield


def whole(base=StateMachine, **members):
    """A state machine that defines what it must, but for what `members` say."""
    disk = {"open": takes_none, "apply_entries": takes_one, "sync": takes_none}
    return kind(base, **{**(disk if base is DiskStateMachine else {"apply": takes_one}), **members})


@pytest.mark.parametrize(
    ("made", "text"),
    [
        pytest.param(5, "must be a StateMachine class, or a function", id="a number"),
        pytest.param(dict, "must be a StateMachine class, or a function", id="another class"),
        pytest.param(kind(), r"must define apply\(self, command\)", id="without apply"),
        pytest.param(kind(ConcurrentStateMachine), r"must define apply\(self, command\)", id="likewise"),
        pytest.param(kind(DiskStateMachine), r"must define open\(self\)", id="without open"),
        pytest.param(
            kind(DiskStateMachine, open=takes_none), r"define apply_entries\(self, entries\)", id="two"
        ),
        pytest.param(
            kind(DiskStateMachine, open=takes_none, apply_entries=takes_one),
            r"must define sync\(self\)",
            id="without sync",
        ),
        pytest.param(whole(apply=is_async), "is_async .* is async, .* as apply", id="async apply"),
        pytest.param(whole(apply_many=is_async), "is async", id="async apply_many"),
        pytest.param(whole(query=is_async), "is async", id="async query"),
        pytest.param(whole(save=is_async), "is async", id="async save"),
        pytest.param(whole(load=is_async), "is async", id="async load"),
        pytest.param(whole(ConcurrentStateMachine, capture=is_async), "is async", id="async capture"),
        pytest.param(whole(DiskStateMachine, open=is_async), "is async", id="async open"),
        pytest.param(whole(DiskStateMachine, apply_entries=is_async), "is async", id="async apply_entries"),
        pytest.param(whole(DiskStateMachine, sync=is_async), "is async", id="async sync"),
        pytest.param(whole(DiskStateMachine, close=is_async), "is async", id="async close"),
        pytest.param(whole(save=is_generator), "is a generator", id="a generator"),
        pytest.param(whole(apply=takes_two), r"called as apply\(command\)", id="too many parameters"),
        pytest.param(whole(query=takes_none), r"called as query\(query\)", id="too few parameters"),
        pytest.param(
            whole(ConcurrentStateMachine, capture=takes_one),
            r"called as capture\(\)",
            id="a parameter too many",
        ),
        pytest.param(whole(apply=3), "3 is not a function", id="no function"),
        pytest.param(
            whole(recorded_name=5), "recorded_name=5: must be a text, in Mine", id="a name that is none"
        ),
    ],
)
def test_what_is_no_state_machine_is_refused(made, text):
    with pytest.raises(ConfigError, match=text):
        make_machine(made)


@pytest.mark.parametrize("base", [StateMachine, ConcurrentStateMachine, DiskStateMachine])
def test_what_only_some_need_may_be_left_out(base):
    assert isinstance(make_machine(whole(base)), base)


def test_a_function_may_make_it_and_its_methods_may_be_of_any_kind():
    class Told(whole()):
        query = staticmethod(lambda query: query)

        def __init__(self, word):
            self.apply_many = functools.partial(list)
            self.word = word

    assert make_machine(lambda: Told("x")).word == "x"


def test_a_renamed_class_may_keep_its_recorded_name():
    assert type_name(whole()()) == "Mine"
    assert type_name(kind(name="New", recorded_name="Old")()) == "Old"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(Refused("no"), "no", id="as it is"),
        pytest.param(Refused(), "", id="without a text"),
        pytest.param(Refused("half a \ud800"), "half a \\ud800", id="half a character"),
        pytest.param(Refused("x" * 5000), "x" * MAX_REFUSAL_CHARS, id="a long one"),
        pytest.param(kind(Refused, "Poor")("no money"), "no money", id="of a subclass"),
    ],
)
def test_of_a_refusal_the_text_is_kept(error, text):
    kept = refusal(error)
    assert type(kept) is Refused
    assert str(kept) == text
    assert kept.__traceback__ is None


def test_a_shard_without_commands_refuses_them_and_has_empty_snapshots():
    machine = make_machine(NoCommands)
    with pytest.raises(
        Refused, match=r"asked by `replica\.ask`: it takes no command, such as one of 7 bytes"
    ):
        machine.apply(b"command")
    with pytest.raises(Refused, match="it takes no query, such as 'what'"):
        machine.query("what")
    sink = io.BytesIO()
    machine.save(sink)
    assert sink.getvalue() == b""
    machine.load(sink)
