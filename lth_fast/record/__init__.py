"""Everything a run leaves on the disk, and how to read it again."""

from lth_fast.record.iterations import COLUMNS, IterationLog
from lth_fast.record.load import LoadedRun, load_run
from lth_fast.record.lock import RunInUseError
from lth_fast.record.run import Level, Replicate, Run, WeightKind, create_run, open_run

__all__ = [
    "COLUMNS",
    "IterationLog",
    "Level",
    "LoadedRun",
    "Replicate",
    "Run",
    "RunInUseError",
    "WeightKind",
    "create_run",
    "load_run",
    "open_run",
]
