"""report.html: the template, its style and script, its tables, and figures as it holds them."""
