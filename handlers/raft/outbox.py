"""What a replica has to tell, until its host asks for it with `Raft.ready`."""

from drakkar.handlers.messages import Message
from drakkar.handlers.raft.ready import Changed, Dropped, LogQueryResult, ReadReady, Ready

__all__ = ["Outbox"]


class Outbox:
    """Messages and reports that wait. Handlers add to it; nothing in it was sent yet."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.reads: list[ReadReady] = []
        self.dropped: list[Dropped] = []
        self.changes: list[Changed] = []
        self.log_query: LogQueryResult | None = None

    def __bool__(self) -> bool:
        return bool(self.messages or self.reads or self.dropped or self.changes or self.log_query)

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
        ready.reads, self.reads = self.reads, []
        ready.dropped, self.dropped = self.dropped, []
        ready.changes, self.changes = self.changes, []
        ready.log_query, self.log_query = self.log_query, None
