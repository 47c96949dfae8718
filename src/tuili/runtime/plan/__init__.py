"""What running a model will take and bring, told before its weights are fetched or read."""
