"""Start the processes of a distillation, on this machine or on several hosts."""
