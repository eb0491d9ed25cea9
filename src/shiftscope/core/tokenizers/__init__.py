"""Tokenizers measured and trained: what streams of tokens cost, where cuts differ, what merges are worth."""
