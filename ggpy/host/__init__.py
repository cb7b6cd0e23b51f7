"""Resources of this machine that the process may use: cores and memory."""
