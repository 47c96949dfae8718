"""`python -m tuili`: the command line where `tuili` itself is not on the PATH."""

from tuili.cli.main import program

program()
