"""The cache of keys and values: which blocks there are, who holds them, which are found again."""
