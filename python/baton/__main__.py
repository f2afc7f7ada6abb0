"""`python -m baton serve MODEL`: the program that the package brings along."""
import os
import pathlib
import sys


def main() -> None:
    program = pathlib.Path(__file__).resolve().parent / "bin" / "baton"
    os.execv(program, [str(program), *sys.argv[1:]])


if __name__ == "__main__":
    main()
