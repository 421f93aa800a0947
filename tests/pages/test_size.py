"""The book's own machinery stays small: what a library does is not written here."""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDLESS = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """The lines with code on them: comments, docstrings and blank lines do not count."""
    lines, documented = set(), (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in WORDLESS:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_are_counted():
    source = '"""Two\nlines."""\n\nx = [\n    1,  # one\n]\n\n\ndef f():\n    """No code."""\n    # nor this\n    return """a\nb"""\n'
    assert code_lines(source) == 6  # x, 1, ], def, and two of the text


def test_the_book_and_its_site_need_at_most_1910_lines():
    lines = {
        path.relative_to(ROOT).as_posix(): code_lines(path.read_text(encoding="utf-8"))
        for folder in ("mathlib/book", "pages")
        for path in ROOT.glob(f"{folder}/**/*.py")
    }
    assert len(lines) > 10 and sum(lines.values()) <= 1910, lines
