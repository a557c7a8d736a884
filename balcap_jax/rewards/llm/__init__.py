"""A multimodal model behind an OpenAI-compatible endpoint as the judge."""
