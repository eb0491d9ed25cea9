"""Collections of embeddings: depth, discriminators, two-sample tests, latent classes and planted shifts."""
