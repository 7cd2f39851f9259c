"""Tests never ask the model hub: this is set before anything imports transformers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
