"""The command line: inspect data directories, repair shards that lost their quorum for good, make certificates.

python -m drakkar.actors inspect|export|import|renumber|certificates, or `drakkar` if the package is installed
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from drakkar.actors.log.data_dir import renumber
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.runtime.futures import brief
from drakkar.actors.tools.repair import HostReport, ReplicaReport, export, import_, inspect
from drakkar.handlers.checks import MAX_SIGNED
from drakkar.handlers.errors import ConfigError, DrakkarError
from drakkar.handlers.raft.confchange import describe
from drakkar.handlers.raft.state import Membership
from drakkar.handlers.table import HandlerTable
from drakkar.transport.addresses import canonical, parse_address

__all__ = ["main"]

_HEADINGS: Final = (
    "shard",
    "replica",
    "state machine",
    "term",
    "vote",
    "commit",
    "first",
    "last",
    "last term",
    "snapshot",
    "state",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 if it succeeded, 1 after an error, printed to stderr, and 2 for a wrong option."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except BrokenPipeError:
        # The reader of stdout has closed it, so Python must not flush it at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted")
    except DrakkarError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'a file'} cannot be used: {explain(error)}")
    return status


def _fail(why: str) -> int:
    print(f"drakkar: error: {' '.join(why.splitlines())}", file=sys.stderr)
    return 1


# -- inspect --------------------------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> int:
    hosts: list[HostReport] = []
    status = 0
    for data_dir in options.data_dir:
        try:
            hosts.append(inspect(data_dir))
        except DrakkarError as error:
            status = _fail(str(error))
    if options.json:
        print(json.dumps({"hosts": [_plain(host) for host in hosts], "best": _best_plain(hosts)}, indent=2))
    else:
        for host in hosts:
            _show(host)
        if hosts:
            _advise(hosts)
    damaged = any(replica.damaged for host in hosts for replica in host.replicas)
    return status or int(damaged)


def _show(host: HostReport) -> None:
    print(f"data directory {host.data_dir}")
    print(f"  deployment {host.deployment_id!r}, address {host.address}, host {host.host_id}\n")
    rows = [_HEADINGS, *(_row(replica) for replica in host.replicas)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for replica in host.replicas:
        _show_more(replica)


def _row(replica: ReplicaReport) -> tuple[str, ...]:
    snapshot = replica.snapshot
    return (
        str(replica.shard_id),
        str(replica.replica_id),
        replica.state_machine,
        str(replica.term),
        str(replica.vote or "-"),
        str(replica.commit),
        str(replica.first_index),
        str(replica.last_index),
        str(replica.last_term),
        f"{snapshot.index} ({snapshot.size} bytes)" if snapshot is not None else "-",
        "DAMAGED" if replica.damaged else ("a witness" if replica.witness else "verified"),
    )


def _show_more(replica: ReplicaReport) -> None:
    members = replica.membership
    addresses = ", ".join(f"{each}={_shown(where)}" for each, where in sorted(members.addresses.items()))
    removed = f"; removed: {_listed(sorted(members.removed))}" if members.removed else ""
    print(f"  shard {replica.shard_id} replica {replica.replica_id}")
    print(f"    members {describe(members)}: {addresses or 'no address is known'}{removed}")
    if not replica.problem:
        print(f"    founding {replica.founding or 'not told'}, {replica.standing.lower()}")
    if replica.kinds:
        print(f"    records of the kinds {_listed(replica.kinds)} in the log, which are extensions' own")
    if replica.snapshot is not None and replica.snapshot.extensions:
        print(f"    extensions in the snapshot: {', '.join(map(_shown, replica.snapshot.extensions))}")
    if replica.problem:
        print(f"    the log is damaged: {replica.problem}")
    if replica.snapshot is not None and replica.snapshot.problem:
        print(f"    the snapshot is damaged: {replica.snapshot.problem}")
    print()


def _best(hosts: Iterable[HostReport]) -> dict[int, tuple[HostReport, ReplicaReport]]:
    """Return the replica to export of each shard: of the undamaged ones, the one that holds most."""
    best: dict[int, tuple[HostReport, ReplicaReport]] = {}
    for host in hosts:
        for replica in host.replicas:
            known = best.get(replica.shard_id)
            sound = not replica.damaged and not replica.witness and replica.last_index
            if sound and (known is None or replica.reach > known[1].reach):
                best[replica.shard_id] = (host, replica)
    return best


def _advise(hosts: Sequence[HostReport]) -> None:
    print(
        "A shard needs a repair only if a majority of its voters can never be started again. Then export the"
    )
    print(
        "survivor with the greatest last term and, of those, the greatest last index; inspect all together."
    )
    for shard, (host, replica) in sorted(_best(hosts).items()):
        print(
            f"Of these, for shard {shard}: replica {replica.replica_id} in {host.data_dir} "
            f"(last term {replica.last_term}, last index {replica.last_index})."
        )


def _plain(host: HostReport) -> dict[str, Any]:
    return {
        **asdict(host),
        "replicas": [
            {**asdict(replica), "membership": _plain_members(replica.membership)} for replica in host.replicas
        ],
    }


def _plain_members(membership: Membership) -> dict[str, Any]:
    # Ids as strings, since the keys of a JSON object are strings.
    return {
        **{
            role: sorted(getattr(membership, role))
            for role in ("voters", "observers", "witnesses", "outgoing", "removed")
        },
        "addresses": {str(replica): where for replica, where in sorted(membership.addresses.items())},
        "change_id": membership.change_id,
    }


def _best_plain(hosts: Sequence[HostReport]) -> dict[str, Any]:
    return {
        str(shard): {"data_dir": host.data_dir, "replica_id": replica.replica_id}
        for shard, (host, replica) in sorted(_best(hosts).items())
    }


# -- export and import ----------------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> int:
    done = export(
        options.data_dir,
        options.shard,
        _state_machine(options.state_machine),
        options.to,
        replica_id=options.replica,
        committed_only=options.committed_only,
        ordered_config_change=options.ordered_config_change,
        compression="zlib" if options.compress else "none",
        handlers=_handlers(options.handlers) if options.handlers else None,
    )
    print(f"{done.path}: {done.size} bytes")
    print(
        f"  the state of shard {done.shard_id} at replica {done.replica_id} after entry {done.index} of term {done.term}; "
        f"members {describe(done.membership)}"
    )
    if done.uncommitted:
        print(
            f"  {done.uncommitted} of its entries were not known to be committed, and are in it: commands whose outcome "
            "was unknown may have taken effect"
        )
    if done.left_out:
        print(
            f"  {done.left_out} entries after it were not known to be committed, and are not in it: acknowledged commands "
            "may be lost"
        )
    print(
        "  Check with `drakkar inspect` of all survivors that this one has the greatest (last term, last index)."
    )
    return 0


def _import(options: argparse.Namespace) -> int:
    if options.replica not in options.members:
        raise ConfigError(
            "--replica", options.replica, f"is not one of the --members {_listed(sorted(options.members))}"
        )
    done = import_(
        options.file,
        options.data_dir,
        shard_id=options.shard,
        replica_id=options.replica,
        members=options.members,
        address=options.address or options.members[options.replica],
        deployment_id=options.deployment,
        as_shard=options.as_shard,
        state_machine=options.state_machine,
        replace=options.replace,
    )
    print(f"{options.data_dir}: shard {done.shard_id} replica {done.replica_id}, after entry {done.index}")
    print(
        f"  members {describe(done.membership)}; removed: {_listed(sorted(done.membership.removed)) or 'none'}"
    )
    for other in done.replaced:
        print(f"  replica {other} was deleted here: it may never run again")
    print("  Import the same file on every other member, then start them all without members.")
    return 0


def _renumber(options: argparse.Namespace) -> int:
    if not parse_address(options.address)[1]:
        raise ConfigError("address", options.address, "name a port: other hosts must find this one there")
    before = renumber(options.data_dir, canonical(options.address))
    print(f"{options.data_dir}: the host that was at {before} is to start at {canonical(options.address)}")
    print("  Tell each of its shards, on a host that runs: replica.update_address(REPLICA, ADDRESS).")
    return 0


def _certificates(options: argparse.Namespace) -> int:
    try:
        from drakkar.actors.tools.trial import make_certificates  # noqa: PLC0415  # the library for it is an extra
    except ImportError as error:
        raise ConfigError(
            "certificates", str(options.folder), "need a library more: pip install 'drakkar[tls]'"
        ) from error
    made, folder = make_certificates(options.folder, options.host), options.folder
    which = "a new authority" if made.new_authority else "the authority that was there"
    print(f"{folder}/ca.pem and {folder}/ca.key: {which}, good until {made.authority:%Y-%m-%d}")
    for host, end in made.hosts.items():
        print(f"{host}: {folder}/{host}.pem and {folder}/{host}.key, good until {end:%Y-%m-%d}")
    print(
        "  Give each host ca.pem and the two files of its own name. Keep ca.key apart: it makes certificates for any name."
    )
    print(
        "  Before a certificate ends, move its two files away, run this again, and write the new ones over the old ones on "
        "the host."
    )
    return 0


def _state_machine(name: str) -> Callable[[], StateMachine]:
    machine: Callable[[], StateMachine] = _imported(
        "--state-machine", name, "write MODULE:CLASS, such as examples.kv:KeyValue"
    )
    return machine


def _handlers(name: str) -> HandlerTable:
    found: Any = _imported("--handlers", name, "write MODULE:TABLE, such as examples.audit:table")
    table: HandlerTable = found() if callable(found) else found
    return table


def _imported(option: str, name: str, form: str) -> Any:
    """Import what an option names. Modules in the current directory are found, as with `python -m`."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(option, name, form)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(option, name, f"cannot be imported: {brief(error)}") from error
    return found


def _shown(address: str) -> str:
    """Return it for a terminal: other members may have put anything in its place into the log."""
    return address if address.isprintable() else repr(address)


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))


# -- the options ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drakkar",
        description="Inspect the data directories of stopped hosts, repair a shard that lost its quorum for good, and make "
        "certificates for a trial.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_inspect(commands)
    _add_export(commands)
    _add_import(commands)
    _add_renumber(commands)
    _add_certificates(commands)
    return parser


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show and check what data directories hold; changes nothing")
    parser.set_defaults(run=_inspect)
    parser.add_argument(
        "data_dir", nargs="+", type=_path, metavar="DIR", help="the data directory of a stopped host"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="write the state of a shard, as one replica has it, to a file"
    )
    parser.set_defaults(run=_export)
    add = parser.add_argument
    add("data_dir", type=_path, metavar="DIR", help="the data directory of a stopped host")
    add("--shard", type=_shard, required=True, metavar="N")
    add("--replica", type=_replica, metavar="N", help="needed if the directory holds several of the shard")
    add(
        "--state-machine",
        required=True,
        metavar="MODULE:CLASS",
        help="a StateMachine class, or a function that makes one, such as examples.kv:KeyValue",
    )
    add(
        "--handlers",
        metavar="MODULE:TABLE",
        help="a HandlerTable, or a function that makes one, if it uses extensions that take entries of the log",
    )
    add("--to", type=_path, required=True, metavar="FILE", help="the file to write, which must not exist")
    add(
        "--committed-only",
        action="store_true",
        help="leave out entries that the replica did not know to be committed; some may have been acknowledged",
    )
    add(
        "--ordered-config-change",
        action="store_true",
        help="if the shard's replicas have this option on",
    )
    add("--compress", action="store_true", help="make the file smaller")


def _add_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import", help="make a replica of an exported shard in a host's data directory"
    )
    parser.set_defaults(run=_import)
    add = parser.add_argument
    add("file", type=_path, metavar="FILE", help="what export wrote")
    add("data_dir", type=_path, metavar="DIR", help="the data directory of a stopped host; made if missing")
    add("--shard", type=_shard, required=True, metavar="N")
    add("--replica", type=_replica, required=True, metavar="N", help="which of the members this host is")
    add(
        "--members",
        type=_members,
        required=True,
        metavar="1=HOST:PORT,...",
        help="all voters from now on, the same list on each; all other replicas are removed for good",
    )
    add("--address", metavar="HOST:PORT", help="address of this host (default: as in --members)")
    add(
        "--deployment",
        default="default",
        metavar="NAME",
        help="deployment id of the hosts (default: default)",
    )
    add("--as-shard", type=_shard, metavar="N", help="import the shard under this number")
    add("--state-machine", metavar="CLASS", help="the name of its type, if the file does not say it")
    add(
        "--replace",
        action="store_true",
        help="delete what the directory holds of the shard, even if that is more than the export",
    )


def _add_renumber(commands: Any) -> None:
    parser = commands.add_parser("renumber", help="give the host of a data directory another address")
    parser.set_defaults(run=_renumber)
    parser.add_argument("data_dir", type=_path, metavar="DIR", help="the data directory of a stopped host")
    parser.add_argument(
        "address", metavar="HOST:PORT", help="the address at which it is to start from now on"
    )


def _add_certificates(commands: Any) -> None:
    parser = commands.add_parser(
        "certificates", help="make an authority and certificates for a trial; overwrites nothing"
    )
    parser.set_defaults(run=_certificates)
    add = parser.add_argument
    add(
        "folder",
        type=_path,
        metavar="DIR",
        help="where they go; an authority that is there already is used again",
    )
    add(
        "host",
        nargs="+",
        metavar="HOST",
        help="the DNS name or IP address in the address of a host, without the port",
    )


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: name a file or a directory")
    return Path(text)


def _shard(text: str) -> int:
    return _number(text, 0, "shard")


def _replica(text: str) -> int:
    return _number(text, 1, "replica")


def _number(text: str, low: int, what: str) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= MAX_SIGNED):
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}: write a number from {low} to {MAX_SIGNED}")
    return int(text)


def _members(text: str) -> dict[int, str]:
    known: dict[int, str] = {}
    for member in text.split(","):
        number, separator, where = member.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(
                f"{member!r} in {text!r} is no member: write NUMBER=HOST:PORT, as in 1=10.0.0.1:7001"
            )
        replica = _replica(number.strip())
        if replica in known:
            raise argparse.ArgumentTypeError(
                f"{text!r} names replica {replica} twice: give each its own number"
            )
        try:
            parse_address(where.strip())
        except DrakkarError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        known[replica] = where.strip()
    return known
