"""One server that OpenAI, Ollama and Anthropic clients already speak to."""
