"""Every move of one header, what stands in its way, and its check against a target."""
