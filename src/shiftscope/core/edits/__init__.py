"""Editing tasks: words marked in passages, what a model puts in their place, and edits that change no text."""
