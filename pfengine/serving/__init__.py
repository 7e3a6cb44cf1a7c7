"""Serving: one scheduler that batches requests, and the HTTP interfaces that people already use in front of it."""
