"""`python pipelines/evaluate.py SUITE --checkpoint DIR --manifest M`: the verb evaluate, as a job's entrypoint."""

import sys

from sightloom.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["evaluate"]
    main()
