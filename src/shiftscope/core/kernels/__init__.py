"""Convolution kernels of a network as samples: read without building a model, and compared."""
