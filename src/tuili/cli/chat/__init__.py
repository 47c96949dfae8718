"""The chat of `tuili run`."""
