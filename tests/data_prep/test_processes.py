"""Processes that end with another one: with their parent, at once, or with any process, soon."""

import subprocess
import sys
import time

from data_prep.processes import is_alive
from tests.parts.corpora import ROOT


def test_a_busy_process_is_killed_with_its_parent():
    script = """
import os, subprocess, sys, time
child = "import time; from data_prep.processes import die_with_parent as end; end({}); print(1, flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child.format(os.getpid())], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)


def test_a_busy_process_ends_with_another_that_is_not_its_parent():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ending = f"from data_prep.processes import die_with; die_with({other.pid})"
    script = f"import time; {ending}; print(1, flush=True); time.sleep(60)"
    busy = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    busy.stdout.readline()
    assert is_alive(busy.pid)
    other.kill()  # and not waited for: a zombie does not run either
    assert busy.wait(timeout=10) == 1
    assert not is_alive(other.pid)
    other.wait()
    busy.stdout.close()
