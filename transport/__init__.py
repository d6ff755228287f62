"""What carries messages between hosts: frames, connections and TLS. Knows no rule of Raft, and stores nothing."""
