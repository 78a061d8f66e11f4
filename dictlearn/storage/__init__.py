"""Atomic writes, checkpoints, and a trained dictionary on disk."""
