"""`python pipelines/train.py CURRICULUM --out DIR [--set key=value]`: the verb train, as a job's entrypoint."""

import sys

from sightloom.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
