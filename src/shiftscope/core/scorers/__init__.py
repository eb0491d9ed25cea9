"""The same tokens scored twice: importance ratios, recorded and served log-probabilities."""
