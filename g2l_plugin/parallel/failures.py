"""What becomes of a job that gives no result."""


class WorkerCrash(RuntimeError):
    """The process that ran a job died: a native library failed, or memory ran out."""


class OutOfTime(RuntimeError):
    """A job took longer than its time limit."""
