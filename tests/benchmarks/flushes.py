"""Was each command on the disks of a majority before it was answered? Seen from outside, by tracing system calls.

One client proposes one command after the other. `strace` watches the three processes that hold the replicas. A command
counts as flushed if at least two of them began a flush after it was proposed and completed it before it was answered: by
`fsync`, `fdatasync` or `msync`, or by an fsync or fdsync that was submitted to Linux AIO and whose completion was fetched.

A process that is traced goes on after a call only when strace has noted its end, so an answer that waited for a flush is
always later than the time of the flush's end. A flush of another file counts too, so one command proves little, and all of some
hundred commands much. Traced processes are slow: nothing is measured meanwhile.
"""

import re
import shutil
import signal
import subprocess
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.load import Load, LoadError
from tests.benchmarks.systems import Unavailable

MAJORITY: Final = 2

_CALLS: Final = "fsync,fdatasync,msync,io_submit,io_getevents,io_pgetevents"
_RESOLUTION_S: Final = 2e-6
"""The trace tells microseconds, cut off."""

_LINE: Final = re.compile(r"(?:(?P<thread>\d+)\s+)?(?P<moment>\d+\.\d+) (?P<text>.*)")
_UNFINISHED: Final = re.compile(r"(?P<start>\w+\(.*?)\s*<unfinished \.\.\.>")
_RESUMED: Final = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_WHOLE: Final = re.compile(
    r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+).* <(?P<seconds>\d+\.\d+)>"
)
_SUBMITTED: Final = re.compile(r"aio_data=(0x[0-9a-f]+)[^}]*aio_lio_opcode=IOCB_CMD_FD?SYNC")
_COMPLETED: Final = re.compile(r"data=(0x[0-9a-f]+), obj=0x[0-9a-f]+, res=0,")


@dataclass(frozen=True, slots=True)
class FlushCheck:
    """What came of the check for one system."""

    commands: int
    flushed: int
    """How many of them were flushed by a majority before the answer."""

    @property
    def verdict(self) -> str:
        if self.flushed == self.commands:
            return f"flushed on a majority before each of {self.commands} answers"
        if not self.flushed:
            return f"not flushed before any of {self.commands} answers"
        return f"NOT flushed before {self.commands - self.flushed} of {self.commands} answers"


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush that succeeded, in seconds of the system's clock."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: str
    result: int
    began: float
    ended: float


def check(system: str, options: Mapping[str, Any], load: Load, directory: Path) -> FlushCheck:
    """Put a load of one command in flight on a fresh cluster, and trace it. Raises `LoadError` and `Unavailable`."""
    with Cluster(system, options, directory) as cluster:
        with ExitStack() as stack:
            traces = [directory / f"trace-{pid}" for pid in cluster.replica_pids]
            for pid, trace in zip(cluster.replica_pids, traces, strict=True):
                stack.enter_context(traced(pid, trace))
            figures, _ = cluster.run(load)
        if not figures.moments:
            raise LoadError("no command's moments were told: trace a waiting client, or a peer's")
        flushes = [flushes_in(trace.read_text().splitlines()) for trace in traces]
    return FlushCheck(len(figures.moments), count_flushed(figures.moments, flushes))


def count_flushed(moments: Iterable[Sequence[float]], flushes: Sequence[Sequence[Flush]]) -> int:
    """How many commands were flushed by a majority between being proposed and answered; flushes are those of each process."""
    by_beginning = [sorted(each, key=lambda flush: flush.began) for each in flushes]
    return sum(
        sum(_flushed(each, proposed, answered) for each in by_beginning) >= MAJORITY
        for proposed, answered in moments
    )


def _flushed(flushes: Sequence[Flush], proposed: float, answered: float) -> bool:
    first = bisect_left(flushes, proposed - _RESOLUTION_S, key=lambda flush: flush.began)
    return any(flush.ended <= answered for flush in _until(flushes, first, answered))


def _until(flushes: Sequence[Flush], first: int, end: float) -> Iterator[Flush]:
    for index in range(first, len(flushes)):
        if flushes[index].began > end:
            return
        yield flushes[index]


def flushes_in(lines: Iterable[str]) -> list[Flush]:
    """The flushes of one process, of which strace wrote these lines."""
    flushes = []
    submitted: dict[str, float] = {}
    # A completion can be fetched before the call that submitted the flush has returned.
    in_order = sorted(_calls(lines), key=lambda call: call.began if call.name == "io_submit" else call.ended)
    for call in in_order:
        if call.name == "io_submit":
            submitted |= dict.fromkeys(_SUBMITTED.findall(call.arguments), call.began)
        elif call.name in {"io_getevents", "io_pgetevents"}:
            done = [data for data in _COMPLETED.findall(call.arguments) if data in submitted]
            flushes += [Flush(submitted.pop(data), call.ended) for data in done]
        elif call.result == 0:
            flushes.append(Flush(call.began, call.ended))
    return flushes


def _calls(lines: Iterable[str]) -> Iterator[_Call]:
    """The calls that strace wrote down, those that it wrote in two pieces put together."""
    unfinished: dict[tuple[str, str], tuple[float, str]] = {}
    for line in lines:
        if (match := _LINE.fullmatch(line)) is None:
            continue
        thread, moment, text = match["thread"] or "", float(match["moment"]), match["text"]
        if (start := _UNFINISHED.fullmatch(text)) is not None:
            name = start["start"].partition("(")[0]
            unfinished[thread, name] = (moment, start["start"])
        elif (resumed := _RESUMED.fullmatch(text)) is not None:
            began, start_text = unfinished.pop((thread, resumed["name"]), (moment, f"{resumed['name']}("))
            if (whole := _WHOLE.fullmatch(start_text + resumed["rest"])) is not None:
                yield _Call(whole["name"], whole["arguments"], int(whole["result"]), began, moment)
        elif (whole := _WHOLE.fullmatch(text)) is not None:
            ended = moment + float(whole["seconds"])
            yield _Call(whole["name"], whole["arguments"], int(whole["result"]), moment, ended)


@contextmanager
def traced(pid: int, trace: Path) -> Iterator[None]:
    """Have strace write the process's flushes to a file meanwhile. Raises `Unavailable`."""
    strace = shutil.which("strace")
    if strace is None:
        raise Unavailable("strace is missing: on Debian, `apt-get install strace`")
    options = ["-f", "-ttt", "-T", "-s", "4096", "-e", f"trace={_CALLS}", "-e", "signal=none"]
    tracer = subprocess.Popen(
        [strace, *options, "-o", str(trace), "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    try:
        told = tracer.stderr.readline()
        if "attached" not in told or "not permitted" in told:
            raise Unavailable(f"strace may not look at other processes here: {told.strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
