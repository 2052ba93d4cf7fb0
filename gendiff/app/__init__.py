"""Pages that show what the built-in checkpoints do."""
