"""What the site needs besides `jupyter-book build .`: python -m pages check | execute | evidence.

Each command exits with 1 and says where when something is wrong.
"""

import argparse
import sys
from pathlib import Path

from pages.check import check
from pages.execute import execute
from pages.generate import generate


def main() -> None:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(prog="python -m pages", description="Prove the built book; renew what it stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "check", help="assert that each page was built and has content, and that links resolve"
    )
    command.add_argument("--output", type=Path, default=root / "_build", help="the book is in OUTPUT/html")
    command.set_defaults(run=lambda options: check(root, options.output.resolve()))
    command = commands.add_parser("execute", help="run the chapters again in place, then write what `evidence` writes")
    command.add_argument("chapters", nargs="*", help="e.g. 01_infonce; all by default")
    command.set_defaults(run=lambda options: execute(root, options.chapters) or generate(root))
    command = commands.add_parser("evidence", help="write the pages and the picture made of what the chapters store")
    command.set_defaults(run=lambda options: generate(root))
    options = parser.parse_args()
    if problems := options.run(options):
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
