"""The public API: a function for each command, and `RuleSet` and `Plan` with their methods."""
