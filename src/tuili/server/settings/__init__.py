"""What can be set about a server: each setting once, and every way to tell it."""
