"""How a network runs fastest on this machine: measured, kept as data, and never changing what it computes."""
