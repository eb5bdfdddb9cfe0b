"""What runs found, as tables and as figures, from their records alone."""

from lth_fast.report.comparison import comparison, comparison_figure
from lth_fast.report.figure import figure
from lth_fast.report.table import table

__all__ = ["comparison", "comparison_figure", "figure", "table"]
