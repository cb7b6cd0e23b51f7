"""Between text and token ids: tokenizers, chat templates, text streams."""
