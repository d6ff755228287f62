"""What a replica has to tell, until its host asks for it with `Raft.ready`."""

from drakkar.handlers.messages import Message
from drakkar.handlers.raft.ready import Changed, Dropped, LogQueryResult, ReadReady, Ready

__all__ = ["Outbox"]


class Outbox:
    """Messages and reports that wait. Handlers add to it; nothing in it was sent yet."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.recalled: list[Message] = []
        self.reads: list[ReadReady] = []
        self.dropped: list[Dropped] = []
        self.changes: list[Changed] = []
        self.warnings: list[str] = []
        self.log_query: LogQueryResult | None = None

    def __bool__(self) -> bool:
        return bool(
            self.messages
            or self.reads
            or self.dropped
            or self.changes
            or self.log_query
            or self.recalled
            or self.warnings
        )

    def recall(self, message: Message) -> None:
        """Let a message, and any that equals it, not leave any more, if it still waits here or at the host."""
        self.messages = [waiting for waiting in self.messages if waiting != message]
        self.recalled.append(message)

    def hand_out(self, ready: Ready, *, hold: bool) -> None:
        """Move everything into `ready`; with `hold` all messages wait for its write, else those whose type says so."""
        messages, self.messages = self.messages, []
        if hold:
            ready.messages_after_save = messages
        else:
            for message in messages:
                (ready.messages_after_save if message.type.traits.after_write else ready.messages).append(
                    message
                )
        # Most hold nothing, in most turns of most replicas.
        if self.reads:
            ready.reads, self.reads = self.reads, []
        if self.dropped:
            ready.dropped, self.dropped = self.dropped, []
        if self.recalled:
            ready.recalled, self.recalled = self.recalled, []
        if self.warnings:
            ready.warnings, self.warnings = self.warnings, []
        if self.changes:
            ready.changes, self.changes = self.changes, []
        ready.log_query, self.log_query = self.log_query, None
