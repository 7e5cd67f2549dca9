"""What rule files declare as their source and target, as headers."""
