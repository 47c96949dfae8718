"""What the torch backend takes of each GPU, and who has what of a model: arithmetic that needs no torch."""
