"""Which worker of pytest-xdist runs which tests."""

from __future__ import annotations

from launches import group_of, is_fast
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController


class Groups(LoadScopeScheduling):
    """All tests of a group run in the same worker, also after a worker died.

    The groups of xdist 3.8 have no effect with pytest 9.2. Its class for scopes starts a test that ended its worker again, and
    gives the next worker groups that contain no test to run, for which that worker then waits forever.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.partition("::")[0], is_fast(self.config))

    def remove_node(self, node: WorkerController) -> str | None:
        """Return the test in which a worker died, if it did. The tests that remain in its groups go to the next worker."""
        units = self.assigned_work.pop(node)
        remaining = [nodeid for unit in units.values() for nodeid, completed in unit.items() if not completed]
        for group, unit in units.items():
            if tests := {nodeid: False for nodeid in unit if nodeid in remaining[1:]}:
                self.workqueue[group] = tests
        for other in self.nodes if self.workqueue else []:
            self._reschedule(other)
        return remaining[0] if remaining else None

    def _reschedule(self, node: WorkerController) -> None:
        """Assign groups until the worker has two tests, because it starts a test only when it knows the next one."""
        super()._reschedule(node)
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
