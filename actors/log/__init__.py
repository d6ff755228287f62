"""The log on disk: what a replica has promised to remember, and the data directory that holds it."""
