"""Attacks on real hosts: what a stranger, and what a host with a valid certificate, can do to a cluster at most."""
