"""Companions: tensors that give another tensor its value, as scales and alphas do."""
