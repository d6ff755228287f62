"""State machines: what users write, and what applies the log to it, answers queries, and saves and loads its state."""
