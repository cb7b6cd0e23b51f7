"""From logits to a token, on the host or on a device."""
