"""The state machine: what users write, and what applies commands to it, answers queries and saves its state."""
