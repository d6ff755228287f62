"""What may come beneath TLS before it has brought any data, or none."""

import ssl
import time
from collections.abc import Callable
from typing import TypeAlias

import pytest
import trio
import trustme
from drakkar.transport.frames import FrameError
from drakkar.transport.records import HANDSHAKE_LIMIT, MeasuredTls, Records
from trio.testing import memory_stream_pair

from tests.transport.support import on_loop

SERVER = "server.example"
Contexts: TypeAlias = tuple[ssl.SSLContext, ssl.SSLContext]
TlsStream: TypeAlias = "trio.SSLStream[Records]"


class Raw:
    """One end of a connection with TLS, without a socket: bytes out of it and into it by hand."""

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)

    async def shake_hands(self, stream: trio.abc.Stream) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await stream.send_all(self._out.read())
                self._in.write(await stream.receive_some())
            else:
                await stream.send_all(self._out.read())
                return

    def records(self, count: int, data: bytes) -> bytes:
        """So many records, each with this data."""
        for _ in range(count):
            self.tls.write(data)
        return self._out.read()


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.num_tickets = 0
    server.sslobject_class = MeasuredTls
    authority.issue_cert(SERVER).configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


async def _connected(
    contexts: Contexts, clock: Callable[[], float] = time.thread_time
) -> tuple[TlsStream, Records, Raw, trio.abc.Stream]:
    """Return the server's stream, what is beneath it, the client, and its plain end."""
    server, client = contexts
    ours, theirs = memory_stream_pair()
    beneath = Records(ours, clock)
    stream = trio.SSLStream(beneath, server, server_side=True)
    raw = Raw(client, SERVER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.shake_hands, theirs)
        with beneath.handshake():
            await stream.do_handshake()
    return stream, beneath, raw, theirs


async def _read_all(stream: TlsStream, beneath: Records, size: int) -> None:
    while size:
        got = len(await stream.receive_some())
        beneath.brought(got)
        size -= got


@on_loop
async def test_a_handshake_is_bounded() -> None:
    ours, theirs = memory_stream_pair()
    records = Records(ours)
    await theirs.send_all(bytes(HANDSHAKE_LIMIT + 1))
    assert len(await records.receive_some()) == HANDSHAKE_LIMIT
    with pytest.raises(FrameError, match="a handshake of TLS has more than 16384 bytes"):
        await records.receive_some()


@on_loop
async def test_what_other_tasks_do_meanwhile_is_no_cost_of_a_handshake(contexts: Contexts) -> None:
    work = 0

    async def work_all_the_time() -> None:
        nonlocal work
        while True:
            work += 1000
            await trio.lowlevel.checkpoint()

    def clock() -> float:
        nonlocal work
        work += 1
        return work

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work_all_the_time)
        _, beneath, *_ = await _connected(contexts, clock)
        nursery.cancel_scope.cancel()
    assert work > 1000
    assert 0 < beneath.seconds < 10  # one for each step


@on_loop
async def test_records_of_frames_go_on_for_ever(contexts: Contexts) -> None:
    stream, beneath, raw, theirs = await _connected(contexts)
    for _ in range(20):
        await theirs.send_all(raw.records(100, bytes(16)))
        await _read_all(stream, beneath, 1600)


@on_loop
async def test_large_records_in_small_pieces_are_one_each(contexts: Contexts) -> None:
    stream, beneath, raw, theirs = await _connected(contexts)
    data = raw.records(10, bytes(16_000))
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for at in range(0, len(data), 7):
                await theirs.send_all(data[at : at + 7])

        nursery.start_soon(send)
        await _read_all(stream, beneath, 160_000)


@on_loop
async def test_records_that_bring_less_than_a_frame_end_the_connection(contexts: Contexts) -> None:
    stream, beneath, raw, theirs = await _connected(contexts)
    await theirs.send_all(raw.records(100, b"x"))
    with pytest.raises(
        FrameError, match="records of TLS brought 100 bytes of data, and no host sends so many"
    ):
        await _read_all(stream, beneath, 200)
