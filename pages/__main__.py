"""The site's command line: python -m pages check | execute | evidence (`jupyter-book build` builds the book).

Each command exits with 1 and says where when something is wrong.
"""

import argparse
import sys
from pathlib import Path

from pages.check import check
from pages.execute import execute, write_evidence


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pages", description="Prove and renew the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "check": "assert that each page is built, has content, and loads nothing from outside",
        "execute": "run the chapters again in place, then write what `evidence` writes",
        "evidence": "write the tables of evidence and status, and README's picture, from what the chapters store",
    }
    command = {name: commands.add_parser(name, help=text) for name, text in helps.items()}
    command["check"].add_argument("--output", type=Path, default=Path("_build"), help="the book is in OUTPUT/html")
    command["execute"].add_argument("chapters", nargs="*", help="e.g. 01_infonce; all by default")
    options = parser.parse_args()

    root = Path(__file__).parents[1]
    problems = []
    if options.command == "check":
        problems = check(root, options.output.resolve())
    elif options.command == "execute":
        problems = execute(root, options.chapters)
    else:
        write_evidence(root)
    if problems:
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
