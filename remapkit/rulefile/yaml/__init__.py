"""YAML as nodes that know their places, and the one writer of YAML."""
