"""The audit of an index: label errors, near-duplicates, outliers and crutches, with the pictures and why.

`run.audit` looks, `files.write_audit` writes. Nothing is imported here: the command's help must come at once.
"""

PARTS = ("labels", "duplicates", "outliers", "crutches")
