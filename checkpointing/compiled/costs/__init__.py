"""What operators cost on a device: measured once at their own shapes, and kept."""
