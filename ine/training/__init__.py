"""Language models trained to rewrite prompts."""
