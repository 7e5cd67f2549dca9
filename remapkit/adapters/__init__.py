"""Adapters: the rules of a model's LoRAs, derived from the rules of its weights."""
