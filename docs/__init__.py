"""The documents: pages in Markdown, and what makes a site of them (`make docs`)."""
