"""What of this machine and installation works: each thing that measurements need is tried, not looked up."""
