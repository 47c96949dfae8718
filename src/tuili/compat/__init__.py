"""Other programs' Python interfaces over this library's engine, one module each."""
