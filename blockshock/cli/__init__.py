"""The commands, and how they answer what a user got wrong."""
