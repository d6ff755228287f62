"""Questions to an actor of another Drakkar host, used as an application uses them."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import pykka
from drakkar.actors import IN_MEMORY, NodeHost, TrioActor

from tests.benchmarks.load import Done, Figures, Load, run

_TIMEOUT_S: Final = 30.0
_NAME: Final = "echo"


class _OnLoop(TrioActor):
    def on_receive(self, message: Any) -> Any:
        return message


class _Threaded(pykka.ThreadingActor):
    use_daemon_thread = True

    def on_receive(self, message: Any) -> Any:
        return message


class Calls:
    """One of the two hosts. With `kind` "trio" the actor lives on its host's loop, with "thread" in a thread of its own.

    A waiting client blocks a thread for each answer; the others are called back on the loop of their host.
    """

    def __init__(self, asked: str, kind: str) -> None:
        self._asked, self._kind = asked, kind
        self.address = ""

    def __enter__(self) -> Self:
        self._host = NodeHost("127.0.0.1:0", data_dir=IN_MEMORY)
        if self._asked:
            self._echo = self._host.remote(self._asked, _NAME, timeout=_TIMEOUT_S)
        else:
            actor = _OnLoop.start(loop=self._host.loop) if self._kind == "trio" else _Threaded.start()
            self._host.publish(_NAME, actor)
            self.address = self._host.address
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.stop()

    def run(self, load: Load) -> Figures:
        """Ask. Raises `LoadError` if a single question fails."""
        return run(self, load)

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Ask one question, and be called back. See `load.Target`."""
        (question,) = commands
        asked = self._echo.ask(question, block=False, timeout=_TIMEOUT_S)
        asked.add_done_callback(lambda answered: done(answered.outcome()[1]))

    def propose_and_wait(self, command: bytes) -> None:
        """Ask one question, and wait for the answer."""
        answer = self._echo.ask(command, timeout=_TIMEOUT_S)
        assert answer == command

    def read(self, done: Done) -> None:
        raise NotImplementedError
