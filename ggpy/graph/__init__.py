"""A model's computation, independent of devices: the graph language, the program made from it, and its shares."""
