"""One renderer: any Result as an HTML page, in the terminal, or a single chart as a picture."""

from __future__ import annotations

from shiftscope.report.charts import figure
from shiftscope.report.console import terminal
from shiftscope.report.document import page, write

__all__ = ["figure", "page", "terminal", "write"]
