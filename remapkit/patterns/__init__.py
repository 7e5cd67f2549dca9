"""Keys as regular languages: patterns, templates, and the matcher for all rules at once."""
