"""Companions: tensors that determine the value of another tensor, such as scales and alphas."""
