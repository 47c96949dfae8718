"""The torch backend: CUDA, and whatever else torch computes on. Knows specs, batches and tensors."""
