"""Checkpoints in, GGUF files out: readers, tokenizer export, the streaming writer. Knows nothing of the runtime."""
