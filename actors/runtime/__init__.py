"""What actors live on: the loop, inboxes, futures, the actor with a handler table, and worker threads.

Knows nothing of Raft, logs or hosts: an application's own actors run on it too.
"""
