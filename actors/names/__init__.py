"""Names that outlive hosts, in a replicated directory, and singletons, which run where a shard's leader is."""
