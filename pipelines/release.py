"""`python pipelines/release.py NAME:VERSION --gate G --manifest M --json`: the verb promote, as a job's entrypoint."""

import sys

from sightloom.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["promote"]
    main()
