"""The public index has another project named mathlib, whose files go into the same folder as these.

The one that is installed last replaces `__init__.py`, and to uninstall either takes files of the other with it.
"""

from importlib.metadata import distributions

DAMAGED = (
    "mathlib is damaged: another project, named mathlib on the public index, was installed into the same folder as "
    "mathlib-book. Run `pip uninstall mathlib mathlib-book`, then install mathlib-book again"
)


def refuse_namesake() -> None:
    """Raise ImportError where the other project is installed too."""
    if any(distributions(name="mathlib")):
        raise ImportError(DAMAGED)
