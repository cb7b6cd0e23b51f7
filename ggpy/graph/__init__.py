"""What a model computes, free of devices: the graph language, the program made of it, and its shares."""
