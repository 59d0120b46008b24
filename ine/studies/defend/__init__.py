"""`ine defend`: one defence from one command, chosen on tuning prompts, reported on others."""
