"""The engine: continuous batching over a paged cache, in token ids only."""
