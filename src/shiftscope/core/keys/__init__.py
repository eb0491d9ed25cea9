"""Families of look-alike tokens in the unembedding: clusters, gains, and lists mined from a next-token law."""
