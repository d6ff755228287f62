"""Exceptions between hosts: the same type where it is registered, a `RemoteError` where it is not, and never another error."""

import sys
import traceback
from typing import Any

import cbor2
import pykka
import pytest
from drakkar.actors.remote.failures import (
    MAX_ARGS_BYTES,
    MAX_TEXT,
    MAX_TRACEBACK,
    MAX_TYPE,
    Failure,
    RemoteError,
    decode_failure,
    encode_failure,
    failure,
)
from drakkar.actors.remote.values import ValueRefused, pack
from drakkar.actors.runtime.monitor import ActorCrashed
from drakkar.handlers import errors
from drakkar.handlers.errors import (
    ConfigError,
    DrakkarError,
    ExtensionFailed,
    ForkedError,
    MissingExtension,
    NotLeader,
    SystemBusy,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.remote.support import REFS, TEXTS, VALUES, Deposit, Ref, shape


@failure("test.overdrawn")
class Overdrawn(Exception):
    def __init__(self, account: Any, missing: Any) -> None:
        super().__init__(account, missing)
        self.account, self.missing = account, missing


class Undeclared(Overdrawn):
    """Not registered, though its base is."""


def crossed(error: BaseException) -> Exception:
    """The exception as it comes out on another host."""
    return decode_failure(encode_failure(error, REFS), REFS)


def raised(error: BaseException) -> BaseException:
    """The exception with the traceback of its raising."""
    try:
        raise error  # noqa: TRY301  # it is raised to have a traceback
    except BaseException as caught:  # noqa: BLE001
        return caught


# ---- registered ones


@given(VALUES, VALUES)
def test_a_registered_exception_comes_out_as_what_it_was(account: Any, missing: Any) -> None:
    out = crossed(Overdrawn(account, missing))
    assert type(out) is Overdrawn
    assert shape(out.account) == shape(account)
    assert shape(out.missing) == shape(missing)


OWN = {
    "ConfigError": ConfigError("workers", 0, "must be a whole number"),
    "NotLeader": NotLeader(3, 1, "it is removed"),
    "ForkedError": ForkedError("a host", 2, 1),
    "ExtensionFailed": ExtensionFailed("Audit", "save", 7, "ValueError: broken"),
    "MissingExtension": MissingExtension(7, "an entry of kind 231"),
}
SAMPLES = [
    *(OWN.get(name) or getattr(errors, name)("it went wrong") for name in errors.__all__),
    ActorCrashed("it went wrong"),
    ValueRefused("message.amount", "is a set", "send a list"),
    RemoteError("bank.Overdrawn", "ann lacks 5", "Traceback"),
    pykka.ActorDeadError("it is dead"),
    pykka.Timeout("3 seconds"),
    Exception("it went wrong"),
    ValueError("it went wrong", 3),
    KeyError("ann"),
    PermissionError("ann may not"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_common_exceptions_are_registered(error: Exception) -> None:
    out = crossed(error)
    assert (type(out), out.args, str(out)) == (type(error), error.args, str(error))


@pytest.mark.parametrize("error", [SystemBusy("full"), errors.OutcomeUnknown("lost")])
def test_whether_the_outcome_is_known_crosses_too(error: DrakkarError) -> None:
    out = crossed(error)
    assert isinstance(out, DrakkarError)
    assert out.outcome_known is error.outcome_known


@failure("test.fixed")
class Fixed(DrakkarError):
    """Its users may not change what it says."""

    @property
    def outcome_known(self) -> bool:  # type: ignore[override]
        return True


def test_of_a_message_that_was_handled_no_exception_says_that_it_surely_had_no_effect() -> None:
    for error in [*SAMPLES, Fixed("it went wrong")]:
        out = decode_failure(encode_failure(error, REFS), REFS, handled=True)
        assert not isinstance(out, DrakkarError) or not out.outcome_known
        assert type(out) is (RemoteError if isinstance(error, Fixed) else type(error))


def test_references_in_arguments_come_out_usable() -> None:
    assert crossed(Overdrawn(Ref(1), [Ref(2)])).args == (Ref(1), [Ref(2)])


def test_the_traceback_is_a_note_of_what_comes_out() -> None:
    out = crossed(raised(Overdrawn("ann", 5)))
    (note,) = out.__notes__
    assert note.startswith("On the other host:\nTraceback (most recent call last):")
    assert "in raised" in note
    assert note in "".join(traceback.format_exception(out))


# ---- all others


@pytest.mark.parametrize(
    ("error", "name"),
    [
        pytest.param(Undeclared("ann", 5), f"{__name__}.Undeclared", id="a subclass of a registered one"),
        pytest.param(
            FileNotFoundError(2, "No such file", "/tmp/a"), "FileNotFoundError", id="a file of that host"
        ),
        pytest.param(ConnectionResetError("reset"), "ConnectionResetError", id="a connection of that host"),
        pytest.param(ExceptionGroup("all", [ValueError("one")]), "ExceptionGroup", id="a group"),
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="what would end a process"),
        pytest.param(SystemExit(1), "SystemExit", id="what would end a thread"),
    ],
)
def test_an_exception_that_is_not_registered_comes_out_as_a_remote_error(error: Exception, name: str) -> None:
    out = crossed(raised(error))
    assert type(out) is RemoteError
    assert (out.type, out.text) == (name, str(error))
    assert (
        out.traceback.rstrip().endswith(f"{name}: {error}" if str(error) else name)
        or "ExceptionGroup" in name
    )
    assert str(out) == (f"{name}: {error}" if str(error) else name)
    assert not out.outcome_known


def test_an_exception_that_the_receiver_does_not_know_is_a_remote_error() -> None:
    failed = Failure("test.of_a_later_version", "no", "", pack(["ann"], REFS))
    assert str(decode_failure(failed, REFS)) == "test.of_a_later_version: no"


def test_one_that_only_has_the_name_of_a_registered_one_is_a_remote_error() -> None:
    assert type(decode_failure(Failure("test.overdrawn", "no", "", None), REFS)) is RemoteError


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(({1}, 1), id="what cannot be sent"),
        pytest.param((b"x" * MAX_ARGS_BYTES, 1), id="too many bytes"),
        pytest.param((Ref(1000), 1), id="a reference that cannot be sent"),
    ],
)
def test_arguments_that_cannot_be_sent_make_a_remote_error(args: Any) -> None:
    out = crossed(Overdrawn(*args))
    assert type(out) is RemoteError
    assert out.type == "test.overdrawn"


def test_a_remote_error_that_is_passed_on_stays_what_it_was() -> None:
    first = crossed(raised(Undeclared("ann", 5)))
    second = crossed(raised(first))
    assert isinstance(second, RemoteError)
    assert second.args == first.args


# ---- exceptions of users that do harm


@failure("test.one_argument")
class OneArgument(Exception):
    """The usual mistake: its `args` are not those of its constructor."""

    def __init__(self, account: str, missing: int) -> None:
        super().__init__(f"{account} lacks {missing}")


@failure("test.exits")
class Exits(Exception):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if args:
            sys.exit(1)


@failure("test.another")
class Another(Exception):
    def __new__(cls, *args: Any) -> Any:
        return Deposit("ann") if args else super().__new__(cls)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test.one_argument", "OneArgument.__init__() missing 1 required positional argument"),
        ("test.exits", "SystemExit"),
        ("test.another", "its class made a tests.actors.remote.support.Deposit"),
    ],
)
def test_an_exception_that_cannot_be_made_is_a_remote_error_that_says_why(name: str, why: str) -> None:
    out = decode_failure(Failure(name, "ann lacks 5", "Traceback", pack(["ann"], REFS)), REFS)
    assert type(out) is RemoteError
    assert (out.type, out.text, out.traceback) == (name, "ann lacks 5", "Traceback")
    assert why in out.__notes__[0]
    assert "cannot be made here" in out.__notes__[0]


def test_an_exception_whose_arguments_are_not_those_of_its_constructor_keeps_its_text() -> None:
    assert str(crossed(OneArgument("ann", 5))) == "test.one_argument: ann lacks 5"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@failure("test.no_args")
class NoArgs(Exception):
    @property
    def args(self) -> Any:
        raise RuntimeError("no arguments")


@pytest.mark.parametrize("error", [Mute(), NoArgs(), Mute({1})])
def test_an_exception_that_cannot_be_read_crosses_as_far_as_it_can(error: Exception) -> None:
    out = crossed(raised(error))
    assert type(out) is RemoteError
    assert "Mute" in out.type or out.type == "test.no_args"


def test_the_text_of_an_exception_that_has_none_says_so() -> None:
    assert encode_failure(Mute(), REFS).text == "its text cannot be read, since that raised a RuntimeError"


# ---- bounds


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    raise Undeclared("x" * 50_000, "the end")


def test_all_texts_are_bounded() -> None:
    cls = type("N" * 1000, (Exception,), {})
    failed = encode_failure(raised(cls("x" * 50_000)), REFS)
    assert (len(failed.type), len(failed.text), len(failed.traceback)) == (MAX_TYPE, MAX_TEXT, MAX_TRACEBACK)


def test_a_long_traceback_keeps_its_end() -> None:
    try:
        deep(300)
    except Undeclared as error:
        failed = encode_failure(error, REFS)
    assert len(failed.traceback) <= MAX_TRACEBACK
    assert failed.traceback.rstrip().endswith("'the end')")


@given(st.text(st.characters()))
def test_a_text_that_is_no_unicode_crosses(said: str) -> None:
    failed = encode_failure(raised(RuntimeError(said)), REFS)
    for text in failed[:3]:
        assert text.encode().decode() == text


def test_half_a_character_is_shown_by_its_number() -> None:
    assert crossed(Undeclared("\ud800", 1)).args[1] == "('\\ud800', 1)"
    assert encode_failure(RuntimeError("\ud800"), REFS).text == "\\ud800"


# ---- what comes in


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(cbor2.dumps({"a": 1}), id="a dict"),
        pytest.param(cbor2.dumps("ab"), id="a string"),
        pytest.param(cbor2.dumps([{"@": "os.system"}, 1]), id="a class that is not registered"),
        pytest.param(cbor2.dumps(["ann"]), id="too few"),
        pytest.param(cbor2.dumps(["ann", 1, 2]), id="too many"),
    ],
)
def test_bad_arguments_make_a_remote_error(args: bytes) -> None:
    assert type(decode_failure(Failure("test.overdrawn", "no", "", args), REFS)) is RemoteError


NAMES = st.one_of(
    TEXTS, st.sampled_from(["test.overdrawn", "test.exits", "KeyError", "drakkar.NotLeader", "Exception"])
)


@given(NAMES, TEXTS, TEXTS, st.one_of(st.none(), st.binary(), VALUES.map(lambda value: pack([value], REFS))))
def test_whatever_comes_in_an_exception_comes_out(
    name: str, text: str, trace: str, args: bytes | None
) -> None:
    assert isinstance(decode_failure(Failure(name, text, trace, args), REFS), Exception)


# ---- mistakes


@pytest.mark.parametrize(
    ("register", "said"),
    [
        pytest.param(
            lambda: failure(Overdrawn),  # type: ignore[arg-type]
            'must be a string in parentheses: write @failure("bank.overdrawn")',
            id="without parentheses",
        ),
        pytest.param(lambda: failure("test.int")(int), "is no subclass of Exception", id="a number"),  # type: ignore[type-var]
        pytest.param(
            lambda: failure("test.exit")(SystemExit),  # type: ignore[type-var]
            "is no subclass of Exception",
            id="what ends a process",
        ),
        pytest.param(
            lambda: failure("ValueError")(Undeclared),
            "is the name of ValueError: choose another",
            id="a built-in name",
        ),
        pytest.param(
            lambda: failure("test.overdrawn")(Undeclared),
            f"is the name of {__name__}.Overdrawn: choose another one for {__name__}.Undeclared",
            id="a name that is taken",
        ),
        pytest.param(
            lambda: failure("test.my_key_error")(KeyError),
            "KeyError has the name 'KeyError'",
            id="a second name",
        ),
        pytest.param(lambda: failure(""), "must be printable and not empty", id="no name"),
    ],
)
def test_a_mistake_is_named_with_a_remedy(register: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        register()
    assert said in str(caught.value)
