"""The models of one server: loaded when asked for, kept as long as memory allows, each behind its own engine."""
