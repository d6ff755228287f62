"""Tools for operators: inspect data directories, export and import a shard, repair one that lost its quorum."""
