"""What hangs on the training loop."""
