"""The command line: arguments, one module a command, rendering. What a command does is in `api/`."""
