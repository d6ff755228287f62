"""Snapshots as files: how they are laid out, written, checked, kept and removed."""
