"""Several engines of one model behind one client: who gets which request, and what they are together."""
