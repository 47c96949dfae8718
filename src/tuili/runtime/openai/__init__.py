"""What OpenAI's bodies and answers have in common wherever they are read: in batch files, and by the server."""
