"""`make results`: the figures of README and docs, written from report.json and bench/results.json.

The figures that the pages show stand in docs/figures/figures.json. A block of a page between `<!-- figures: NAME -->`
and `<!-- end -->` is what the template docs/figures/NAME.jinja makes of them; the rest of the page is written by hand.
"""

from eval.results.figures import Figures, read_figures, taken, write_figures
from eval.results.pages import PAGES, filled

__all__ = ["PAGES", "Figures", "filled", "read_figures", "taken", "write_figures"]
