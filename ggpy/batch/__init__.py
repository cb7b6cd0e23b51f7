"""Files of requests answered by a model, in OpenAI's batch format."""
