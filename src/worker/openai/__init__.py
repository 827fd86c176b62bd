"""OpenAI's API as jobs of ours: its requests -> inputs, answers -> its replies and errors."""
