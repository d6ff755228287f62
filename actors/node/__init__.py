"""One replica as an actor: its inbox, the Raft machine inside, and the execution of what `Raft.ready` asks for."""
