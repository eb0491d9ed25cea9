"""Images and token grids: read, cut into patches, and judged by a detector trained on one side."""
