"""Calls between actors of different hosts: values and failures as bytes, and what hosts say to each other about actors."""
