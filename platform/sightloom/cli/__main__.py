"""`python -m sightloom.cli`: the command line where its script is not on the PATH."""

from sightloom.cli import main

if __name__ == "__main__":
    main()
