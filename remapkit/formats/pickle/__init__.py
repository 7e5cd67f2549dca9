"""Reads the pickles of checkpoints without importing or calling anything."""
