"""How many durable commits a second, and how soon: see `commits`."""
