"""Cut a model's vocabulary to the pieces that some languages need."""
