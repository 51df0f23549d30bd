"""The report: dense against sparse."""
