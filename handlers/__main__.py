"""`python -m drakkar.handlers` prints the whole handler matrix."""

from drakkar.handlers.raft.matrix import raft_handlers

print(raft_handlers().describe())  # noqa: T201  # printing is what the command is for
