"""The commands of the README's section on real machines, with addresses, ports and directories of this machine in them.

The installation is left out, and no file is copied: the three hosts run in one folder.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.actors.support import until
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"## On real machines\n(.+?)\n## ", re.DOTALL)
BLOCK = re.compile(r"```sh\n(.+?)```", re.DOTALL)


def commands(raft, clients):
    """The commands that make certificates and start hosts, with ports that are free here."""
    (section,) = SECTION.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    _, certificates, hosts = BLOCK.findall(section)
    certificates, hosts = (
        re.sub(r"10\.0\.0\.([123])", r"127.0.0.\1", text.replace("\\\n", ""))
        for text in (certificates, hosts)
    )
    started = [line for line in hosts.splitlines() if not line.startswith("#")]
    assert len(started) == 3
    return certificates, [
        line.replace(":7001", f":{raft}")
        .replace("127.0.0.1:6379", f"127.0.0.1:{port}")
        .replace("data ", f"data{port} ")
        for line, port in zip(started, clients, strict=True)
    ]


def words(command):
    assert command.startswith("python -m ")
    return [sys.executable, *shlex.split(command)[1:]]


def client(port):
    return redis.Redis(port=port, decode_responses=True, socket_timeout=10)


def answer(ask):
    """What a client is told; None where the host has no leader yet."""
    try:
        return ask()
    except redis.RedisError:
        return None


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_the_commands_of_the_readme_run_a_store_on_three_addresses(folder):
    raft, *clients = free_ports(4)
    certificates, hosts = commands(raft, clients)
    subprocess.run(words(certificates), cwd=folder, check=True, capture_output=True)
    running = [
        subprocess.Popen(words(host), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for host in hosts
    ]
    try:
        for number, process in enumerate(running, 1):
            assert process.stdout.readline().startswith(f"ready: replica {number}, redis on ")
        one, other = client(clients[0]), client(clients[1])
        assert until(lambda: answer(lambda: one.set("greeting", "hello")))
        assert until(lambda: answer(lambda: other.get("greeting"))) == "hello"
    finally:
        for process in running:
            process.terminate()
        said = [process.communicate(timeout=30)[1] for process in running]
    assert not any("without TLS" in text or "certificate" in text for text in said), said
    assert [process.returncode for process in running] == [0, 0, 0]
