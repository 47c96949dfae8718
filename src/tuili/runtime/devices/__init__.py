"""What a model takes of GPUs, told without torch."""
