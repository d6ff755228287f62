"""For operators: look into a data directory, export and import snapshots, repair a shard that lost its quorum."""
