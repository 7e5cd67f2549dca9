"""Dtypes, specs, headers and key families."""
