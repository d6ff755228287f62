"""What users import and see: nothing is missing, nothing is there that only nodes may call."""

import builtins
import inspect
import re
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import drakkar.actors
import drakkar.handlers
import drakkar.handlers.testing
import pytest
from drakkar.actors import IN_MEMORY, NodeHost, RaftConfig, TlsConfig
from drakkar.handlers import errors
from drakkar.transport.options import Options

FACES = [
    pytest.param(face, id=face.__name__)
    for face in (drakkar.actors, drakkar.handlers, drakkar.handlers.testing)
]
EXPORTED = {*drakkar.actors.__all__, *drakkar.handlers.__all__}

HOST = {
    "address",
    "config",
    "counters",
    "deployment_id",
    "find",
    "log_memory",
    "loop",
    "metrics",
    "peers",
    "publish",
    "published",
    "register",
    "registered_names",
    "reload_tls",
    "remote",
    "remote_names",
    "remove_data",
    "replica",
    "singleton",
    "start_directory",
    "start_replica",
    "start_replicas",
    "stop",
    "store_status",
    "subscribe",
    "tick_interval",
    "unpublish",
    "unregister",
    "unsubscribe",
}
REPLICA = {
    "add_observer",
    "add_replica",
    "add_witness",
    "ask",
    "assign_groups",
    "change_membership",
    "counters",
    "fence",
    "forget_leader",
    "groups_consistent",
    "propose",
    "propose_many",
    "query_log",
    "read",
    "ref",
    "remove_replica",
    "replica_id",
    "session",
    "shard_id",
    "snapshot",
    "stale_read",
    "status",
    "stop",
    "table",
    "tell",
    "transfer_leadership",
    "update_address",
    "when_applied",
}
SESSION = {"client", "close", "open", "propose", "retry", "token"}


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def members(cls):
    """The public methods and properties of a class, as functions."""
    for name, member in inspect.getmembers(cls):
        function = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function):
            yield f"{cls.__name__}.{name}", function


def classes(face):
    found = [getattr(face, name) for name in face.__all__]
    return [each for each in found if inspect.isclass(each)]


def test_a_replica_a_session_and_their_host_have_what_users_call_and_nothing_else():
    """In particular not what a host does for its nodes: `host.compact` would destroy a replica."""

    class Nothing(drakkar.actors.StateMachine):
        apply = query = save = load = None

    with NodeHost("127.0.0.1:0", IN_MEMORY) as host:
        replica = host.start_replica(
            Nothing, shard_id=1, replica_id=1, members={1: host.address}, config={"election_ticks": 3}
        )
        session = replica.session(timeout=20).get(timeout=20)
        assert (public(host), public(replica), public(session)) == (HOST, REPLICA, SESSION)


@pytest.mark.parametrize("face", FACES)
def test_each_public_name_is_exported_once_and_says_what_it_is(face):
    assert len(set(face.__all__)) == len(face.__all__)
    # Constants stand beside their classes, and carry the text of those.
    assert [name for name in face.__all__ if not inspect.getdoc(getattr(face, name))] == []


@pytest.mark.parametrize("face", FACES)
def test_what_a_face_shows_without_an_underscore_is_exported_or_a_module(face):
    shown = {name for name in public(face) if not inspect.ismodule(getattr(face, name))}
    assert shown == set(face.__all__)


def test_every_error_can_be_imported_where_the_calls_that_raise_it_are():
    assert [name for name in errors.__all__ if name not in drakkar.actors.__all__] == []


def test_every_error_that_a_docstring_names_can_be_imported():
    named = {}
    for cls in classes(drakkar.actors):
        for name, function in members(cls):
            for error in re.findall(r"`([A-Z]\w+)`", inspect.getdoc(function) or ""):
                named.setdefault(error, name)
    wrong = {
        error: where
        for error, where in named.items()
        if error.endswith("Error") and error not in EXPORTED and not hasattr(builtins, error)
    }
    assert wrong == {}
    assert {"ConfigError", "DeadlockError", "LoopError"} <= named.keys(), "docstrings are looked at"


@pytest.mark.parametrize("cls", [NodeHost, drakkar.actors.Replica, drakkar.actors.Session])
def test_the_types_of_what_is_given_and_returned_can_be_imported(cls):
    functions = dict(members(cls))
    if cls is NodeHost:  # the others are made by the host
        functions["NodeHost"] = cls.__init__
    seen = [
        (part.__name__, name)
        for name, function in functions.items()
        for hint in typing.get_type_hints(function).values()
        for part in parts(hint)
        if part.__module__.startswith("drakkar")
    ]
    assert seen, "annotations are looked at"
    assert [each for each in seen if each[0] not in EXPORTED] == []


def test_the_docs_say_what_each_option_of_a_replica_does_on_a_host():
    told = (Path(__file__).parents[3] / "docs" / "embedding.md").read_text()
    options = {field.name for field in fields(RaftConfig)} - {"replica_id", "shard_id"}
    assert [option for option in sorted(options) if f"`{option}`" not in told] == []


def shown(name, default):
    """A default as the docs write it."""
    if default in (None, inspect.Parameter.empty, MISSING):
        return "none" if default is None else "needed"
    if isinstance(default, str):
        return f'"{default}"'
    if "bytes" in name or name in {"frame_limit", "call_limit"}:
        return f"{int(default) >> 20} MiB"
    return (
        f"{default:g} s"
        if isinstance(default, float)
        else str(default)
        if default is True
        else f"{default:,}"
    )


def test_the_docs_list_all_options_of_a_host_with_their_defaults():
    told = (Path(__file__).parents[3] / "docs" / "embedding.md").read_text(encoding="utf-8")
    section = told[told.index("## Options of a host") : told.index("## Options of a replica")]
    arguments = list(inspect.signature(NodeHost).parameters.values())[1:]
    options = {each.name: each.default for each in arguments}
    for kind in (TlsConfig, Options):
        options |= {field.name: field.default for field in fields(kind)}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section, re.MULTILINE))
    assert rows == {name: shown(name, default) for name, default in options.items()}


def parts(hint):
    """The classes of an annotation."""
    origin = typing.get_origin(hint)
    found = [each for each in (hint, origin) if isinstance(each, type)]
    for each in typing.get_args(hint):
        for one in each if isinstance(each, list) else [each]:  # a Callable's arguments
            found += parts(one)
    return found
