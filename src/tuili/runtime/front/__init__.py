"""The text side of a model: requests go in and token requests come out, token deltas go in and events come out."""
