"""The report as people read it: files, one page, and a summary in the terminal."""

from eval.report.files import Thumbnails, to_dict, write_report
from eval.report.terminal import summary
from eval.report.words import sentences

__all__ = ["Thumbnails", "sentences", "summary", "to_dict", "write_report"]
