"""report.html: the template, its style and script, and dark mode."""
