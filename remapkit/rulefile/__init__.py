"""YAML to located nodes to what an author wrote, and back: schema, arithmetic, the YAML writer."""
