"""What the chapters need beside the mathematics: data, figures, evidence, exercises.

Importing ``mathlib`` never imports this subpackage.
"""
