"""What the site needs besides `jupyter-book build .`: python -m pages check | execute | evidence | korean.

Each command exits with 1 and says where when something is wrong.
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(prog="python -m pages", description="Prove the built book; renew what it stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="assert that each page is there with text, and that links resolve")
    command.add_argument("--output", type=Path, default=root / "_build", help="the book is in OUTPUT/html")
    command = commands.add_parser("execute", help="run notebooks again in place, then write what `evidence` writes")
    command.add_argument("notebooks", nargs="*", help="e.g. labs/01_infonce 01_infonce; all by default")
    commands.add_parser(
        "evidence", help="write measured.json, the pages and the picture made of what the notebooks store"
    )
    command = commands.add_parser("korean", help="list where the Korean edition and the English one do not agree")
    command.add_argument("names", nargs="*", help="e.g. 01_infonce README common; all by default")
    command.add_argument(
        "--words", action="store_true", help="first write ko/outputs/NAME.json, with what lacks a Korean"
    )
    options = parser.parse_args()

    # each command with its own libraries: the chapters' take seconds to import
    if options.command == "check":
        from pages.check import check

        problems = check(root, options.output.resolve())
    elif options.command == "execute":
        from pages.execute import execute

        problems = execute(root, options.notebooks)
    elif options.command == "korean":
        from pages import korean

        if options.words:
            korean.write_words(root, options.names or [*korean.pages(root), korean.COMMON])
        problems = korean.check(root, options.names)
    else:
        from pages.generate import generate

        problems = generate(root)
    if problems:
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
