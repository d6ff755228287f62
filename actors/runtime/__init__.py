"""What actors live on: the loop, the actor with its inbox and futures, its end that others are told of, and workers.

Knows nothing of Raft, logs or hosts: an application's own actors run on it too.
"""
