"""Drafts of what may come next, and how many of them pay."""
