"""What several figures are made of: panels, axes, colours, and what a figure is."""
