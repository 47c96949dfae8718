"""A running server, as the commands see it."""
