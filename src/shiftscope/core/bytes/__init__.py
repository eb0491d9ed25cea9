"""Token models read byte by byte: the bytes of tokens, which encodings are canonical, and exact laws of the next byte."""
