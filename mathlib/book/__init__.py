"""What the chapters need besides the mathematics: data, figures, verdicts, exercises.

Importing ``mathlib`` never imports this subpackage.
"""

import mathlib
from mathlib._namesake import DAMAGED

# mathlib/__init__.py is not ours, or gone, and nothing in it can say so.
if not hasattr(mathlib, "info_nce"):
    raise ImportError(DAMAGED)
