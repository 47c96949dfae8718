"""`python -m benchmarks.cpu`: the table."""

from benchmarks.cpu.table import main

main()
