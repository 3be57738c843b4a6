"""Networks for other programs: what their files compute, how they are written, proven equal to torch, and run."""
