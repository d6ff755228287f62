"""Actors of other hosts: what is published, references to it, and the calls between them. Knows nothing of Raft."""
