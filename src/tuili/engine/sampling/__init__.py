"""How a next token is chosen, as data for the backends: parameters, penalties, rules over token ids."""
