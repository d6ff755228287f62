"""The Raft machine: its state, its conversations, one thesis chapter a file, and the matrix of who answers what.

Pure. Start with `matrix`; then `core`, the state of one replica; then the conversations; `raft` is what a host talks to.
"""
