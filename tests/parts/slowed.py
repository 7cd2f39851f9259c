"""``python -m tests.parts.slowed SECONDS ARGUMENTS``: pipeline.distill, whose every update waits for SECONDS first."""

import runpy
import sys
import time

from pipeline.training import loop

if __name__ == "__main__":
    seconds, update = float(sys.argv.pop(1)), loop.update

    def slowed(*arguments, **named):
        time.sleep(seconds)
        return update(*arguments, **named)

    loop.update = slowed
    runpy.run_module("pipeline.distill", run_name="__main__", alter_sys=True)
