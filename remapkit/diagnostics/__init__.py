"""Places in texts, messages with codes, errors, and the one way to say counts, sizes, lists and names."""
