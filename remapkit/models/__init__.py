"""Models on the meta device, found by reference, and their headers."""
