"""A report of changes, as text, Markdown or JSON."""
