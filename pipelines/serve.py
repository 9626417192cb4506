"""`python pipelines/serve.py MODEL --on ray`: the verb serve, as a job's entrypoint."""

import sys

from sightloom.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["serve"]
    main()
