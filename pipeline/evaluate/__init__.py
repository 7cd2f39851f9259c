"""Fine-tune and score models on the papers' tasks."""
