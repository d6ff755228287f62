"""What actors run on: the loop, inboxes, futures, monitoring, supervisors, the actor with a handler table, and worker threads.

It knows nothing of Raft, logs or hosts: an application's own actors run on it too.
"""
