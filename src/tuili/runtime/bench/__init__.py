"""Measuring a loaded model, alone or beside a peer, with one definition of every figure."""
