"""The command line: arguments, one module per command, rendering. The work of the commands is in `api/`."""
