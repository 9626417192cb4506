"""`python -m sightloom.cluster.start [NAME=FILE …] [NAME …] [--in FOLDER] -- PROGRAM …`: the first process of a job.

It reads secrets from files of its node into the environment, sees that the node has set the others, goes to the code,
and becomes the program. No secret stands in the job's description, and no shell reads its words.
"""

import os
import sys
from pathlib import Path

from sightloom.errors import UserMistake


def prepared(words: list[str], environment: dict[str, str]) -> tuple[list[str], str, dict[str, str]]:
    """Read the words of the command line.

    Returns:
        The program's words, the folder it starts in (empty: this one), and its environment.

    Raises:
        UserMistake: a secret's file is missing, or a variable that the node should have set is not.
    """
    mark = words.index("--")
    before, program, folder = words[:mark], words[mark + 1 :], ""
    found = dict(environment)
    while before:
        word = before.pop(0)
        if word == "--in":
            folder = before.pop(0)
            continue
        name, named, file = word.partition("=")
        if named:
            try:
                found[name] = Path(file).read_text(encoding="utf-8").rstrip("\n")
            except OSError as error:
                raise UserMistake(f"secret {name}: this node has no file '{file}' ({error.strerror})") from error
        elif name not in found:
            raise UserMistake(f"secret {name}: this node does not set the variable", "set it where Ray is started")
    return program, folder, found


def main() -> None:
    """Become the program; leave with 2 where a secret is missing."""
    try:
        program, folder, environment = prepared(sys.argv[1:], dict(os.environ))
        if folder:
            os.chdir(folder)
    except (UserMistake, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    os.execvpe(program[0], program, environment)


if __name__ == "__main__":
    main()
