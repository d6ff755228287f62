"""The commands for operators: what they print, and what they say of a mistake."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from drakkar.actors.tools import cli
from drakkar.actors.tools.repair import export, inspect
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.raft.state import Membership

from tests.actors.tools.support import LOG, NEW, STATE, B, Book, Directory, started
from tests.actors.users import as_a_common_user


def drakkar(*arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "drakkar.actors", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_the_commands_repair_a_shard(survivor, tmp_path):
    survivor.fill(snapshot=7)
    behind = Directory(tmp_path / "behind", address=B).fill(LOG[:10], replica=2)
    shown = drakkar("inspect", survivor.path, behind.path)
    assert [line.split() for line in shown.splitlines() if line.endswith("verified")] == [
        ["1", "1", "Book", "3", "2", "9", "1", "12", "2", "7", *snapshot_size(survivor), "verified"],
        ["1", "2", "Book", "3", "2", "9", "1", "10", "2", "-", "verified"],
    ]
    assert f"for shard 1: replica 1 in {survivor.path} (last term 2, last index 12)" in shown
    as_data = json.loads(drakkar("inspect", "--json", survivor.path, behind.path))
    assert as_data["best"] == {"1": {"data_dir": str(survivor.path), "replica_id": 1}}
    assert as_data["hosts"][0]["replicas"][0]["membership"]["removed"] == [3]

    file = tmp_path / "export"
    told = drakkar(
        "export",
        survivor.path,
        "--shard",
        1,
        "--state-machine",
        "tests.actors.tools.support:Book",
        "--to",
        file,
    )
    assert "3 of its entries were not known to be committed" in told
    members = ",".join(f"{number}={address}" for number, address in NEW.items())
    told = drakkar("import", file, tmp_path / "new", "--shard", 1, "--replica", 4, "--members", members)
    assert "shard 1 replica 4, after entry 12" in told
    assert "removed: 2, 3, 9" in told
    assert started(tmp_path / "new")[0] == STATE


def snapshot_size(directory):
    return f"({directory.snapshot_files()[0].stat().st_size} bytes)".split()


def test_the_commands_tell_what_is_wrong_in_one_line(survivor, tmp_path):
    survivor.fill()
    options = ["export", survivor.path, "--shard", 1, "--to", tmp_path / "file", "--state-machine"]
    for machine, says in (
        ("nothing", "write MODULE:CLASS"),
        ("no.such:Thing", "cannot be imported"),
        ("tests.actors.tools.support:Other", "was written for 'Book'"),
    ):
        told = drakkar(*options, machine, status=1)
        assert told.startswith("drakkar: error: ")
        assert says in told
        assert told.count("\n") == 1
    survivor.harm_log(b"pay")
    assert drakkar("inspect", survivor.path, tmp_path / "nowhere", status=1).count("\n") == 1
    assert "is no member" in drakkar("import", "f", "d", "--shard=1", "--replica=1", "--members=1", status=2)


WRONG_PATHS = {
    "missing": "does not exist, so perhaps its disk is not mounted",
    "file": "is a file: name a directory",
    "file/below": "is a file: name a directory",
    "empty": "is empty, so no host was ever started there",
    "foreign": "holds no IDENTITY, so no host was ever started there",
    "log-alone": "IDENTITY is missing, beside log",
    "circle": "symbolic links lead in a circle",
    "a" * 300: "choose a shorter path",
}
COMMANDS = {
    "inspect": "inspect {path}",
    "inspect --json": "inspect --json {path}",
    "export": "export {path} --shard 1 --state-machine tests.actors.tools.support:Book --to {base}/out",
    "renumber": "renumber {path} 10.0.0.9:7000",
}
IMPORT = "import {file} {path} --shard 1 --replica 1 --members 1=a:1"


@pytest.fixture
def wrong_paths(tmp_path):
    (tmp_path / "file").write_text("some text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("Dear all")
    (tmp_path / "log-alone" / "log").mkdir(parents=True)
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


def one_line(capsys, command, **where):
    """What a command says that fails: one line, on stderr alone."""
    assert cli.main([part.format(**where) for part in command.split()]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("drakkar: error: ")
    if "--json" in command:
        assert json.loads(printed.out) == {"hosts": [], "best": {}}
    else:
        assert printed.out == ""
    return printed.err


@pytest.mark.parametrize(("path", "says"), WRONG_PATHS.items(), ids=lambda value: value[:20])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_directory_is_one_line(command, path, says, wrong_paths, capsys):
    told = one_line(capsys, command, path=wrong_paths / path, base=wrong_paths)
    assert str(wrong_paths / path.split("/")[0]) in told
    assert says in told
    assert not (wrong_paths / "out").exists()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_directory_that_this_user_may_not_read_is_one_line(command, capsys):
    with as_a_common_user() as base:
        user = os.geteuid()
        os.seteuid(os.getuid())
        (base / "closed").mkdir(mode=0o000)
        os.seteuid(user)
        told = one_line(capsys, command, path=base / "closed", base=base)
        assert f"{base}/closed cannot be used: Permission denied: this user may not use it" in told


def test_wrong_paths_of_an_import_are_one_line(survivor, target, wrong_paths, capsys):
    survivor.fill()
    export(survivor.path, 1, Book, target)
    for file, says in {
        "missing": "does not exist",
        "file": "it has 9 bytes, and the shortest has",
        "empty": "it is a directory, so name a file",
        "circle": "symbolic links lead in a circle",
    }.items():
        assert says in one_line(capsys, IMPORT, file=wrong_paths / file, path=wrong_paths / "new")
    for path, says in {
        "file": "is a file: name a directory",
        "foreign": "holds letter.txt, but no IDENTITY of ours",
        "log-alone": "IDENTITY is missing, beside log",
    }.items():
        assert says in one_line(capsys, IMPORT, file=target, path=wrong_paths / path)
    told = one_line(capsys, COMMANDS["export"], path=survivor.path, base=wrong_paths / "none")
    assert "is in a directory that does not exist" in told


def test_an_empty_path_is_not_the_current_folder(capsys):
    for arguments in (["inspect", ""], ["export", "", "--shard=1", "--state-machine=a:b", "--to=x"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert "'' is no path: name a file or a directory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"^data_dir='': must be the path of a directory"):
        inspect("")


@pytest.mark.parametrize("address", ["x", "", "a:b", "a:70000", "a:0"])
def test_a_wrong_address_is_one_line(address, survivor, capsys):
    survivor.fill()
    assert cli.main(["renumber", str(survivor.path), address]) == 1
    told = capsys.readouterr().err
    assert told.startswith("drakkar: error: address")
    assert told.count("\n") == 1


def test_what_can_be_inspected_is_shown_beside_what_cannot(survivor, wrong_paths, capsys):
    survivor.fill()
    assert cli.main(["inspect", str(wrong_paths / "missing"), str(survivor.path)]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert f"Of these, for shard 1: replica 1 in {survivor.path}" in printed.out


def test_addresses_that_others_have_logged_send_nothing_to_the_terminal(capsys):
    addresses = {1: "a:1", 2: "b:2\n\x1b[2J"}
    cli._show_more(
        SimpleNamespace(
            shard_id=1,
            replica_id=1,
            membership=Membership({1, 2}, addresses=addresses),
            problem="",
            founding="",
            standing="SETTLED",
            snapshot=None,
            kinds=(),
        )
    )
    assert "1=a:1, 2='b:2\\n\\x1b[2J'" in capsys.readouterr().out


def test_the_commands_of_the_manual_are_commands():
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in manual.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("drakkar ")]
    assert {name for _, name, *_ in commands} == {"inspect", "export", "import", "certificates"}
    for _, *arguments in commands:
        cli._parser().parse_args(arguments)


def test_renumber_gives_a_host_another_address(survivor):
    survivor.fill()
    told = drakkar("renumber", survivor.path, "10.0.0.9:7000")
    assert "is to start at 10.0.0.9:7000" in told
    assert "update_address" in told
    assert "address 10.0.0.9:7000" in drakkar("inspect", survivor.path)
    assert "nonsense" in drakkar("renumber", survivor.path, "nonsense", status=1)
    assert drakkar("renumber", survivor.path / "missing", "10.0.0.9:7000", status=1).count("\n") == 1
