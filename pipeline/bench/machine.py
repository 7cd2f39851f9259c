"""A description of this machine."""

import re
from pathlib import Path

import torch

from data_prep.machine import memory
from pipeline.measuring import device_here
from pipeline.models.arithmetic import rates


def machine(precision: str) -> dict:
    """The properties of the machine and its software that measured numbers depend on."""
    device = device_here()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "name": name,
        "devices": torch.cuda.device_count(),
        "memory": _memory(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "bf16_products": rates()._asdict() if device.type == "cpu" else None,  # FLOP/s of both ways
    }


def _memory(device: torch.device) -> int:
    """Bytes of the GPU's memory, or of this machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory()["total"]


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else "CPU"
