"""Rules compiled, as data: patterns, templates, tables, pipelines, requirements, and a pack's own tests."""
