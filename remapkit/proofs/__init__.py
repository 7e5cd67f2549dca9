"""What holds for all keys: no two rules match one key, no two keys become one target."""
