"""Keys of published checkpoints -> ours: a file for each architecture, and what they share."""
