"""What this machine lets the process have: cores and memory."""
