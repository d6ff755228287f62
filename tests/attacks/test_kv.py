"""Clients of the key-value example: any stranger that reaches its port, as Redis has no certificates."""

import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis

from tests.actors.support import until
from tests.attacks import forge
from tests.ports import free_ports

pytestmark = [pytest.mark.xdist_group("attacks"), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
IDLE_S = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One host of the example, alone: its port for clients, and its process."""
    raft, port = free_ports(2)
    with subprocess.Popen(
        [
            sys.executable, "-m", "examples.kv", "--replica", "1", "--members", f"1=127.0.0.1:{raft}",
            "--data-dir", str(tmp_path_factory.mktemp("kv")), "--redis", f"127.0.0.1:{port}", "--idle-timeout", str(IDLE_S),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert "ready" in process.stdout.readline()
        with closing(_client(port)) as client:
            until(lambda: _answers(client))
        yield port, process
        process.terminate()


def _client(port):
    return redis.Redis(port=port, socket_timeout=5)


def _answers(client):
    try:
        return client.set("control", "1")
    except redis.RedisError:
        return False


def _memory_mib(process):
    statm = Path(f"/proc/{process.pid}/statm").read_text()
    return int(statm.split()[1]) * 4096 >> 20


def _raw(port):
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def _rate(client, seconds=0.7):
    until_, count = time.monotonic() + seconds, 0
    while time.monotonic() < until_:
        client.set("innocent", count)
        count += 1
    return count / seconds


@pytest.mark.parametrize(
    "claim",
    [
        b"*1000000000\r\n",
        b"*1\r\n$536870912\r\n",
        b"*1\r\n$-7\r\n",
        b"*2147483647\r\n$1\r\nx",
        b"$999999999999999999999\r\n",
        b"*99999\r\n" * 1000,
        b"*9999\r\n" * 1000,
        b"*1\r\n|99999999\r\n",
        b"*2\r\n$1\r\nabc*9999\r\n",
        b"*1\r\n" * 10_000,
    ],
)
def test_absurd_lengths_are_refused_at_once(store, claim):
    port, process = store
    before = _memory_mib(process)
    with _raw(port) as attacker:
        attacker.sendall(claim)
        attacker.settimeout(1.0)
        assert attacker.recv(1000).startswith(b"-ERR"), "it waits for what will never come"
    assert _memory_mib(process) < before + 32
    with closing(_client(port)) as client:
        assert client.set("control", "2")


def test_idle_clients_end(store):
    port, _ = store
    with ExitStack() as held:
        silent = [held.enter_context(_raw(port)) for _ in range(200)]
        deadline = time.monotonic() + 3 * IDLE_S
        for one in silent:
            one.settimeout(max(0.1, deadline - time.monotonic()))
            while one.recv(1000):
                pass


def test_replies_that_are_not_read(store):
    """A large value, asked for again and again on connections that never read."""
    port, process = store
    with closing(_client(port)) as client:
        client.set("large", bytes(400 << 10))
        before, calm = _memory_mib(process), _rate(client)

        def again():
            with _raw(port) as attacker:
                attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                attacker.sendall(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n" * 1000)
                time.sleep(1)

        with forge.Attackers(*[again] * 20):
            time.sleep(1)
            during = _rate(client)
            assert _memory_mib(process) < before + 256
        assert during > calm / 3


def test_bytes_that_are_no_command_change_nothing(store):
    port, process = store
    noise = [
        b"\x00" * 100,
        b"GET\x00\r\n",
        b"*1\r\n*1\r\n$1\r\nx\r\n",
        b"*0\r\n" * 1000,
        b"!" * 70_000,
        b"POST / HTTP/1.1\r\n\r\n",
    ]
    with closing(_client(port)) as client:
        client.set("before", "1")
        for bytes_ in noise:
            with _raw(port) as attacker:
                attacker.sendall(bytes_)
        assert client.get("before") == b"1"
    assert process.poll() is None
