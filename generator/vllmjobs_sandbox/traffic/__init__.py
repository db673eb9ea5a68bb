"""Requests as clients send them, and what became of each."""
