"""What actors run on: the loop, actors with their inboxes and futures, monitoring, and worker threads.

It knows nothing of Raft, logs or hosts: an application's own actors run on it too.
"""
