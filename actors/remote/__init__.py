"""Calls between actors of different hosts: values, exceptions and records as bytes."""
