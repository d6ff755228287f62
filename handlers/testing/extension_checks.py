"""Has extensions check their own invariants: `Extension.check`, after each step."""

from typing import Any

from drakkar.handlers.messages import Message
from drakkar.handlers.raft.lives import Life
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.services import NodeServices
from drakkar.handlers.testing.history import Violation

__all__ = ["check_extensions", "check_steps"]


def check_extensions(node: NodeServices) -> None:
    """Call `check` of a node's extensions. Raises `Violation`, named after the method, for an `AssertionError` of one."""
    for class_ in node.handlers.extensions:
        if not hasattr(class_, "check"):
            continue
        extension: Any = node.extension(class_)
        try:
            extension.check()
        except Violation:
            raise
        except AssertionError as broken:
            raise Violation(f"{class_.__name__}.check", f"{broken or 'it failed'}") from broken


def check_steps(raft: Raft) -> None:
    """Check the extensions of a replica after each message from now on, but not in the middle of one."""
    if not any(hasattr(class_, "check") for class_ in raft.handlers.extensions):
        return
    step = raft.step
    depth = 0

    def watched_step(message: Message, life: Life | None = None) -> Any:
        nonlocal depth
        depth += 1
        try:
            answer = step(message, life)
        finally:
            depth -= 1
        if not depth:
            check_extensions(raft)
        return answer

    raft.step = watched_step  # type: ignore[method-assign]
