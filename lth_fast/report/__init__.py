"""What a run found, as a table and as a figure, from its records alone."""

from lth_fast.report.figure import figure
from lth_fast.report.table import table

__all__ = ["figure", "table"]
