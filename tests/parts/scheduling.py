"""Files of tests handed out to worker processes; a worker that dies costs the one test at which it died."""

import pytest
from xdist.scheduler import LoadFileScheduling


class Surviving(LoadFileScheduling):
    """pytest-xdist's scheduler by files, but what a dead worker had finished is not handed out again.

    In pytest-xdist 3.8 those finished files are empty work for the others, who wait for ever at the end of one; and a
    test that kills its worker is run again.
    """

    def remove_node(self, node):
        """Forget ``node`` and hand out what it had not begun; return the test at which it died, if there is one."""
        work = self.assigned_work.pop(node)
        left = {file: [test for test, done in tests.items() if not done] for file, tests in work.items()}
        died = next((test for tests in left.values() for test in tests), None)
        left = {file: dict.fromkeys((test for test in tests if test != died), False) for file, tests in left.items()}
        self.workqueue.update({file: tests for file, tests in left.items() if tests})
        for other in self.assigned_work:
            self._reschedule(other)
        return died


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Surviving(config, log) if config.option.dist == "loadfile" else None
