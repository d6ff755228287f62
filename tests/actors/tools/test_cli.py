"""The commands for operators: what they print, and what they say of a mistake."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from drakkar.actors.tools import cli

from tests.actors.tools.support import LOG, NEW, STATE, B, Directory, started


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


def test_the_commands_of_the_manual_are_commands():
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in manual.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("drakkar ")]
    assert {name for _, name, *_ in commands} == {"inspect", "export", "import"}
    for _, *arguments in commands:
        cli._parser().parse_args(arguments)
