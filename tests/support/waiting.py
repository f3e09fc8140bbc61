"""Waiting for what other processes do."""

import time


def wait_for(happened, process=None, log=None, seconds=240):
    """What `happened` returns once that is true; the process, where one is named, has to live until then."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = log.seek(0) or log.read() if log is not None else ""
            what = f"exit code {process.poll()}" if ended else f"{seconds} s went by"
            raise AssertionError(f"{what} before it happened:\n{said}")
        time.sleep(0.2)
    return found
