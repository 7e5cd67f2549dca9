"""Installed packs and plugins, rule sets loaded by name, and what was verified for a pack."""
