"""Snapshots as files: their format, how they are written and checked, and when they are removed."""
