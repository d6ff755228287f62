"""The log store: what a replica must remember across a crash, and the data directory of a host."""
