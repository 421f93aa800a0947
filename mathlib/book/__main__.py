"""The book's command line: python -m mathlib.book build | check | serve | execute | evidence.

Run it in the folder of `_config.yml` and `_toc.yml`. Each command exits with 1 and says where when
something is wrong.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
import warnings
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CELL_SECONDS = 60


def pages(root: Path) -> list[str]:
    """The pages of _toc.yml in order, without suffix: chapters/index, chapters/notation, ..."""
    from sphinx_external_toc.parsing import create_toc_dict, parse_toc_yaml

    toc = create_toc_dict(parse_toc_yaml(root / "_toc.yml"))
    found = [toc["root"]]

    def walk(item: dict) -> None:
        for part in item.get("subtrees") or item.get("parts") or [item]:
            for entry in part.get("entries") or part.get("chapters") or part.get("sections") or []:
                found.append(entry["file"])
                walk(entry)

    walk(toc)
    return [str(Path(page).with_suffix("").as_posix()) for page in found]


# Build ------------------------------------------------------------------------------------------


def build(root: Path, output: Path) -> list[str]:
    """Build the book into output/html, with warnings as errors; the problems found, or []."""
    from jupyter_book.sphinx import build_sphinx

    # Sphinx repeats no warning for a page that it has cached, so a second build would pass where the
    # first one failed. What is cached is used only if the last build ended well and nothing
    # changed that concerns every page.
    stamp = output / ".built"
    state = whole_book_state(root)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != state:
        for folder in ("html", ".doctrees", "jupyter_execute"):
            shutil.rmtree(output / folder, ignore_errors=True)
    stamp.unlink(missing_ok=True)

    # sphinx_external_toc looks at every live object, torch's deprecated ones too.
    warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op`")
    status = build_sphinx(
        root,
        output / "html",
        noconfig=True,
        path_config=root / "_config.yml",
        confoverrides={
            "external_toc_path": str(root / "_toc.yml"),
            "latex_individualpages": False,
            "nitpicky": True,
        },
        builder="html",
        warningiserror=True,
        keep_going=True,
    )
    if status:
        return [
            "the build failed: each WARNING or ERROR above names its file and line"
            " (in a notebook, line 30002 is line 2 of cell 3)"
        ]
    stamp.write_text(state, encoding="utf-8")
    return []


def whole_book_state(root: Path) -> str:
    """A digest of what every page depends on."""
    digest = hashlib.sha256()
    paths = [root / name for name in ("_config.yml", "_toc.yml", "requirements.txt")]
    for folder in (root / "_static", root / "_templates", Path(__file__).parent):
        paths += sorted(path for path in folder.glob("*") if path.is_file())
    for path in paths:
        digest.update(path.read_bytes() if path.exists() else b"")
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_REF_NAME"):
        digest.update(f"{name}={os.environ.get(name)}\n".encode())
    return digest.hexdigest()


# Check ------------------------------------------------------------------------------------------

# <link rel="canonical"> and the like name a page, but load nothing.
LOADING_RELS = {"stylesheet", "icon", "apple-touch-icon", "mask-icon", "manifest", "preload", "prefetch"}
LOADING_RELS |= {"modulepreload", "preconnect", "dns-prefetch"}
LOADED_ATTRIBUTES = {
    "src": None,
    "srcset": None,
    "imagesrcset": None,
    "poster": None,
    "background": None,
    "data": {"object"},
    "href": {"link", "use", "image", "feimage"},
    "xlink:href": {"use", "image", "feimage"},
}
ABSOLUTE = re.compile(r"\s*(https?:|ftp:|wss?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
# What a script loads by a literal address; one put together at run time needs a browser to see.
IN_QUOTES = re.compile(r"""["'`]((?:https?:)?//[^"'`\s]+)""")
LOADING_CODE = re.compile(
    r"""(\b(import|from)\s*\(?|\b(fetch|importScripts|Worker)\s*\(|\.open\s*\(\s*["']\w+["']\s*,"""
    r"""|\.(src|href)\s*=)\s*$"""
)


def loads_in_script(script: str) -> set[str]:
    matches = IN_QUOTES.finditer(script)
    return {m[1] for m in matches if LOADING_CODE.search(script[max(0, m.start() - 40) : m.start()])}


def loads_in_style(style: str) -> set[str]:
    return set(IN_STYLE.findall(style))


def scan(html: str) -> dict:
    """One page: its title heading, text, anchors, links, and the absolute addresses that it loads."""
    page = {"title": "", "text": 0, "ids": set(), "links": set(), "loads": set()}
    open_tags = []  # those of interest only: article, h1, script, style

    def start(tag, attributes):
        if tag in ("article", "h1", "script", "style"):
            open_tags.append(tag)
        attributes = {name: value or "" for name, value in attributes}
        page["ids"].update(attributes[name] for name in ("id", "name") if name in attributes)
        if tag == "a" and "href" in attributes:
            page["links"].add(attributes["href"])
        for name, value in attributes.items():
            if name == "style":
                page["loads"].update(loads_in_style(value))
            if name not in LOADED_ATTRIBUTES or tag not in (LOADED_ATTRIBUTES[name] or {tag}):
                continue
            if tag == "link" and not LOADING_RELS & set(attributes.get("rel", "").lower().split()):
                continue
            addresses = value.split(",") if name.endswith("srcset") else [value]
            page["loads"].update(part.split()[0] for part in addresses if ABSOLUTE.match(part))

    def end(tag):
        if tag in open_tags:
            del open_tags[len(open_tags) - 1 - open_tags[::-1].index(tag) :]

    def data(text):
        if "script" in open_tags:
            page["loads"].update(loads_in_script(text))
        elif "style" in open_tags:
            page["loads"].update(loads_in_style(text))
        elif "h1" in open_tags:
            page["title"] += text.strip()
        elif "article" in open_tags:
            page["text"] += len(text.strip())

    parser = HTMLParser()
    parser.handle_starttag, parser.handle_endtag, parser.handle_data = start, end, data
    parser.feed(html)
    parser.close()
    return page


def check(root: Path, output: Path) -> list[str]:
    """What is wrong with the built book: pages missing or empty, dead links, loads from outside."""
    html = output / "html"
    if not html.is_dir():
        return [f"{html} does not exist: build the book first"]
    found = {path: scan(path.read_text(encoding="utf-8")) for path in sorted(html.rglob("*.html"))}
    problems = []

    for name in pages(root):
        page = found.get(html / f"{name}.html")
        if page is None:
            problems.append(f"{name}.html is in _toc.yml, but was not built")
        elif not page["title"].strip("#"):
            problems.append(f"{name}.html has no title heading")
        elif not page["text"]:
            problems.append(f"{name}.html has nothing below its title")
    if html / "index.html" not in found:
        problems.append("index.html, which leads to the first page, was not built")

    for path, page in found.items():
        name = path.relative_to(html).as_posix()
        problems += [f"{name} loads {url}" for url in sorted(page["loads"])]
        for link in sorted(page["links"]):
            url = urlsplit(link)
            if url.scheme or url.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            if not target.exists():
                problems.append(f"{name} links to {link}, which was not built")
            elif url.fragment and target in found and unquote(url.fragment) not in found[target]["ids"]:
                problems.append(f"{name} links to {link}, but there is no such anchor")

    for suffix, loads in ((".css", loads_in_style), (".svg", loads_in_style), (".js", loads_in_script)):
        for path in sorted(html.rglob(f"*{suffix}")):
            name = path.relative_to(html).as_posix()
            text = path.read_text(encoding="utf-8", errors="replace")
            problems += [f"{name} loads {url}" for url in sorted(loads(text))]
    return problems


def address(root: Path, output: Path) -> str:
    return (output / "html" / f"{pages(root)[0]}.html").resolve().as_uri()


def serve(output: Path, port: int) -> None:
    html = output / "html"
    if not html.is_dir():
        sys.exit(f"{html} does not exist: build the book first")
    handler = partial(SimpleHTTPRequestHandler, directory=str(html))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        sys.exit(f"--port must be free, was {port}: {error}")
    print(f"The book is at http://127.0.0.1:{server.server_port}/ until you press Ctrl-C.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


# Execute ----------------------------------------------------------------------------------------


def execute(root: Path, names: list[str]) -> list[str]:
    """Run the chapters again, each in a new kernel, and store what they print; the problems, or []."""
    notebooks = [root / f"{page}.ipynb" for page in pages(root)]
    # the first page sums up what the others measured
    notebooks = [path for path in [*notebooks[1:], notebooks[0]] if path.exists()]
    stems = [path.stem for path in notebooks]
    for name in names:
        if Path(name).stem not in stems:
            return [f"a chapter must be one of {', '.join(stems)}, was {name}"]
    wanted = {Path(name).stem for name in names} or set(stems)

    for path in notebooks:
        if path.stem in wanted and (problem := execute_notebook(path)):
            return [problem]
    write_evidence(root)
    return []


def execute_notebook(path: Path) -> str | None:
    """Run one notebook and store its outputs; the problem, or None."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbformat import v4, validate

    from mathlib.book import status

    before = path.read_text(encoding="utf-8")
    notebook = v4.reads(before)
    normalise(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [json.dumps(cell.outputs, sort_keys=True) for cell in code]

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    started = time.perf_counter()
    number = 0
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            number += 1
            print(f"\r{path.stem}: cell {number} of {len(code)}", end="", flush=True)
            try:
                client.execute_cell(cell, index, execution_count=number)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                print()
                return f"{path}: code cell {number} failed, and the file was left as it was.\n\n{error}"
    seconds = time.perf_counter() - started
    print(f"\r{path.stem}: {len(code)} cells, {seconds:.1f} s")

    normalise(notebook)
    validate(notebook)
    known = notebook.metadata.get(status.KEY, {}).get("code") == status.code(notebook)
    for number, (old, cell) in enumerate(zip(stored, code, strict=True), start=1):
        if old != json.dumps(cell.outputs, sort_keys=True):
            known = False
            first_line = cell.source.strip().partition("\n")[0]
            print(f"  the output of code cell {number} changed: {first_line}")
    if not known:
        notebook.metadata[status.KEY] = status.record(notebook, seconds)
    after = v4.writes(notebook).rstrip("\n") + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8", newline="\n")
    return None


def normalise(notebook) -> None:
    """Take out what differs between two runs of the same code, or between two editors."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    # The lexer is named because myst-nb colours nothing without it; versions are not.
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    notebook.nbformat_minor = 5

    for index, cell in enumerate(notebook.cells):
        if "id" not in cell:
            cell["id"] = hashlib.sha256(f"{index} {cell.source}".encode()).hexdigest()[:8]
        for key in ("execution", "ExecuteTime", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        outputs = []
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
            # How a run's prints are cut into messages is chance.
            if outputs and output.output_type == "stream" == outputs[-1].output_type:
                if outputs[-1].name == output.name:
                    outputs[-1]["text"] += output.text
                    continue
            outputs.append(output)
        cell["outputs"] = outputs


def write_evidence(root: Path) -> None:
    """Write the files that are made from the chapters' stored outputs."""
    from mathlib.book import evidence, status

    made = {
        root / "chapters" / "evidence.md": evidence.table(root / "chapters"),
        root / "chapters" / "status.md": status.table(root / "chapters"),
        root / "_static" / "readme.svg": readme_picture(root),
    }
    for path, text in made.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.relative_to(root)}")


def readme_picture(root: Path) -> str:
    """The last frame of the first page's figure, in colours that stand on any background."""
    text = (root / "chapters" / "index.ipynb").read_text(encoding="utf-8")
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    html = "".join(next(o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})))
    svg = re.findall(r"<svg .*?</svg>", html, re.DOTALL)[-1]
    svg = svg.replace("currentColor", "#767676").replace("var(--paper)", "none")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    return svg.replace("<svg ", f"<svg {names} ", 1) + "\n"


# Command line -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mathlib.book", description="Build and prove the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "build": "build the static book, warnings as errors, then check it",
        "check": "assert that each page is built, has content, and loads nothing from outside",
        "serve": "serve the built book on this machine",
        "execute": "run the chapters again in place, then write what `evidence` writes",
        "evidence": "write the tables of evidence and status, and README's picture, from what the chapters store",
    }
    command = {name: commands.add_parser(name, help=text) for name, text in helps.items()}
    for name in ("build", "check", "serve"):
        command[name].add_argument("--output", type=Path, default=Path("_build"), help="the book is in OUTPUT/html")
    command["serve"].add_argument("--port", type=int, default=8000, help="0 takes a free one")
    command["execute"].add_argument("chapters", nargs="*", help="e.g. 01_infonce; all by default")
    options = parser.parse_args()

    root = Path.cwd()
    if not root.joinpath("_toc.yml").exists():
        sys.exit(f"_toc.yml must be in the current folder, was not in {root}")

    problems = []
    if options.command == "build":
        problems = build(root, options.output.resolve()) or check(root, options.output.resolve())
    elif options.command == "check":
        problems = check(root, options.output.resolve())
    elif options.command == "serve":
        serve(options.output.resolve(), options.port)
    elif options.command == "execute":
        problems = execute(root, options.chapters)
    elif options.command == "evidence":
        write_evidence(root)

    if problems:
        sys.exit("\n".join(["", *problems]))
    if options.command in ("build", "check"):
        print(f"\nAll {len(pages(root))} pages are there. Open {address(root, options.output)}")


if __name__ == "__main__":
    main()
