"""What a host can do that is dialed: it is read as well, and may be a stranger that asked for an answer."""

import threading
from contextlib import contextmanager

import pytest
from drakkar.handlers.messages import MessageType
from drakkar.transport.frames import FrameKind, encode_frame

from tests.attacks import forge
from tests.attacks.forge import STRANGER, UNKNOWN_KIND
from tests.ports import free_ports

pytestmark = [pytest.mark.xdist_group("attacks"), pytest.mark.slow]

MIB = 1 << 20
FLOODS = {
    "pings": encode_frame(FrameKind.PING, b"x" * 8) * 1000,
    "empty frames of an unknown kind": encode_frame(UNKNOWN_KIND) * 1000,
    "messages": forge.rows(*[forge.row(shard=77)] * 512) * 4,
    "a frame of 64 MiB that never ends": forge.frame(FrameKind.MESSAGES, length=64 * MIB) + bytes(63 * MIB),
}


@contextmanager
def _asking(target, flood):
    """A host that is no member, and asks for something that is answered, at its own address; gives what listens there."""
    address = f"{STRANGER}:{free_ports(1, STRANGER)[0]}"
    tls = target.authority and target.authority.issue(STRANGER)
    with (
        forge.Callee(address, flood, tls=tls) as callee,
        forge.introduced(target.members[1], address, tls=target.outsider, host_id=callee.host_id) as link,
    ):
        link.send(forge.shard(1, 9, target.members))
        term = target.status()["term"]
        done = threading.Event()

        def ask():
            while not done.wait(0.05):
                link.send(forge.rows(forge.row(type=int(MessageType.REQUEST_PRE_VOTE), sender=9, term=term)))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        try:
            yield callee
        finally:
            done.set()
            asking.join()


@pytest.mark.parametrize("name", FLOODS)
def test_a_host_that_is_dialed_and_floods_its_caller(plain, name):
    with (
        plain.attack(f"a host that is dialed answers with {name}", memory_mib=96) as seen,
        _asking(plain, FLOODS[name]) as callee,
    ):
        callee.wait(5)
        seen.watch(2)
        seen.note(f"dialed {callee.dialed} times, took {callee.sent / MIB:.1f} MiB")


def test_a_host_with_a_certificate_is_not_even_dialed(secure):
    """Where there is TLS, it asks in vain while there is a leader. Without it, it is dialed, as the test above shows."""
    with (
        secure.attack("a host with a certificate that wants to be dialed") as seen,
        _asking(secure, FLOODS["pings"]) as callee,
    ):
        seen.watch(1.5)
    assert not callee.dialed
