"""Masked and any-order models: how they are read, what a decoder does with them, and whether it keeps their law."""
