"""Writes checkpoints: layouts, files, shards, renames in place."""
