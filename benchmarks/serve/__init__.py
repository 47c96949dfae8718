"""A running server under load: what it costs, what it holds, what it keeps. Each module is a command of its own."""
