"""Print what the project needs with the extras named on the command line, one requirement a line.

The image installs these before it has the code, so that a change of code does not download them again.
"""

import sys
import tomllib


def main() -> None:
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[1:])]
    print(*(requirement for group in groups for requirement in group), sep="\n")


if __name__ == "__main__":
    main()
