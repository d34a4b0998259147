"""Whether this machine can train, and what to change: `g2l doctor`."""
