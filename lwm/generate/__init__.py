"""From prompts to answers: sampling, the engine that knows ids only, and chat."""
