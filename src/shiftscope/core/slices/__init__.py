"""Named subsets of a collection: found in tags or by asking a model, mapped, scored, turned into shift tasks."""
