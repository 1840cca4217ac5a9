"""What people look at: the report as one HTML file or as Markdown, and the templates of the web pages.

Renders what it is given; knows nothing of HTTP, buckets or tensors. Every text is escaped where it is put in.
"""

from pages.report import Unrenderable, markdown, parse, report_html

__all__ = ["Unrenderable", "markdown", "parse", "report_html"]
