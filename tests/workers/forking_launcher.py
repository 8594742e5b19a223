"""A launcher that forks two processes as torchrun starts them: ``forking_launcher.py FOLDER train.py --cfg-path config.yaml``.

Their output is in the files ``stdout`` and ``stderr`` of the folder. If one of them fails, the other one gets SIGTERM.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import connection
from pathlib import Path

from ranks import Group, _program

FOLDER, *ARGUMENTS = sys.argv[1:]
for name in ("stdout", "stderr"):
    Path(FOLDER, name).touch()
group, context = Group(2), multiprocessing.get_context("fork")
workers = []
for rank in range(group.size):
    arguments = ARGUMENTS, os.environ | group.variables(rank), os.getcwd(), FOLDER, False
    workers.append(context.Process(target=_program, args=arguments))
    workers[-1].start()
while running := [worker.sentinel for worker in workers if worker.is_alive()]:
    connection.wait(running)
    if any(worker.exitcode for worker in workers):
        for worker in workers:
            worker.terminate()
            worker.join()
sys.exit(int(any(worker.exitcode for worker in workers)))
