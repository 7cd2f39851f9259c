"""Fine-tune and score models on the papers' tasks."""

# The variable that a worker of another `evaluate` has: its parent's number, and what has to be decided as there.
WORKER = "EVALUATE_WORKER"
