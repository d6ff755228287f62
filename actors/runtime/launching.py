"""Starting an actor of any kind without blocking a loop: in a thread of its own, within a time.

An actor's constructor runs in the thread that starts it, and one of pykka's own has its `on_start` in a thread of its own,
where nothing tells when that is done. Both may block, fail, or hang. So the thread that starts an actor also waits until it
has answered a first question, which pykka answers for it after `on_start`; then the actor counts as started. What comes of a
start that is not waited for any more is stopped.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pykka
import trio
from drakkar.actors.runtime.futures import ActorFuture, brief, this_thread
from drakkar.actors.runtime.inbox import ask_to_stop, question
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import ActorFailed, ConfigError, SystemBusy
from pykka.messages import ProxyGetAttr

__all__ = ["StartTimedOut", "abandon", "launch_in_thread"]

_LOOK_INTERVAL_S: Final = 0.1
"""How often the thread looks whether the actor has ended, since pykka may lose its question then."""
_FIRST_QUESTION: Final = ProxyGetAttr(attr_path=("actor_urn",))


class StartTimedOut(ActorFailed):
    """The actor was not started in time: its constructor, its `on_start` or its publication has not returned."""

    ref: pykka.ActorRef[Any] | None = None
    """The actor, which was asked to stop, and may not do so for long; None while its constructor has not returned."""


def launch_in_thread(
    make: Callable[[], pykka.ActorRef[Any]],
    *,
    name: str,
    loop: TrioLoop,
    timeout: float,
    then: Callable[[pykka.ActorRef[Any]], object] | None = None,
    undo: Callable[[pykka.ActorRef[Any]], object] | None = None,
) -> ActorFuture[pykka.ActorRef[Any]]:
    """Start an actor by `make()`, and call `then(ref)` when it runs; the future has its ref once both are done. Never waits.

    `make` and `then` run in a thread of their own, so they may block. TrioActors that they start, and that name no loop,
    run on `loop`. If the actor fails, ends or takes longer than `timeout` seconds, the future fails, the actor is
    asked to stop, and `undo(ref)` takes back what `then` did, in part perhaps. Where `make` itself hangs, the future is set
    when it returns: so have a deadline too, and call `abandon`.
    """
    started: ActorFuture[pykka.ActorRef[Any]] = ActorFuture()
    until = time.monotonic() + timeout

    def run() -> None:
        this_thread.starts_on = loop
        try:
            started.try_set(_bring_up(make, name, until, timeout, then, undo))
        except BaseException as error:  # noqa: BLE001  # it goes to the one who started it
            started.try_fail(error)
        finally:
            this_thread.starts_on = None

    try:
        trio.lowlevel.start_thread_soon(run, lambda _: None, name=f"start of {name}")
    except RuntimeError as error:  # the process can have no more threads
        started.try_fail(error)
    return started


def abandon(
    started: ActorFuture[pykka.ActorRef[Any]], undo: Callable[[pykka.ActorRef[Any]], object] | None = None
) -> None:
    """Let the actor that comes of a start stop, whenever that is, and take back by `undo(ref)` what was done for it."""
    started.add_done_callback(partial(_stop_unwanted, undo))


def _stop_unwanted(
    undo: Callable[[pykka.ActorRef[Any]], object] | None, started: ActorFuture[pykka.ActorRef[Any]]
) -> None:
    ref, _ = started.outcome()
    if ref is not None:
        ask_to_stop(ref)
        if undo is not None:
            undo(ref)


def _bring_up(
    make: Callable[[], pykka.ActorRef[Any]],
    name: str,
    until: float,
    timeout: float,
    then: Callable[[pykka.ActorRef[Any]], object] | None,
    undo: Callable[[pykka.ActorRef[Any]], object] | None,
) -> pykka.ActorRef[Any]:
    ref = make()
    if not isinstance(ref, pykka.ActorRef):
        raise ConfigError("start", brief(ref), f"must return the ref of the actor that it starts, for {name}")
    try:
        _wait_for_start(ref, name, until, timeout)
        if then is not None:
            then(ref)
            _check_time(name, until, timeout)
    except BaseException as error:
        if isinstance(error, StartTimedOut):
            error.ref = ref
        ask_to_stop(ref)
        if undo is not None:
            undo(ref)
        raise
    return ref


def _wait_for_start(ref: pykka.ActorRef[Any], name: str, until: float, timeout: float) -> None:
    """Return when the actor's `on_start` has returned."""
    answer = question(ref, _FIRST_QUESTION)
    while True:
        try:
            answer.get(timeout=min(_LOOK_INTERVAL_S, max(0.0, until - time.monotonic())))
        except pykka.Timeout:
            if not ref.is_alive():
                raise ActorFailed(f"{name} ended while it started; pykka's log says why") from None
            _check_time(name, until, timeout)
        except SystemBusy:  # it has much to do already, so it runs
            return
        else:
            _check_time(name, until, timeout)
            return


def _check_time(name: str, until: float, timeout: float) -> None:
    if time.monotonic() > until:
        raise StartTimedOut(
            f"{name} did not start within {timeout} seconds: see what its constructor or on_start waits for, or what "
            "publishes it, or give it more time"
        )
