"""What happens from layer to layer: contraction, transport, and curves over depth."""
