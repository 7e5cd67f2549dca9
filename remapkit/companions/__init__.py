"""Tensors that belong to another one, without which it means something else: scales, alphas."""
