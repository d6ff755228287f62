"""The Raft machine: pure, one theme a file.

Start with `matrix`, which says who answers what; then `raft`, the state of one replica; then the conversations, one
thesis chapter a file.
"""
