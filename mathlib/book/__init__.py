"""What the chapters need besides the mathematics: data, figures, evidence, exercises.

Importing ``mathlib`` never imports this subpackage.
"""
