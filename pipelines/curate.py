"""`python pipelines/curate.py RECIPE [--set key=value …]`: the verb curate, as a job's entrypoint."""

import sys

from sightloom.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["curate"]
    main()
