"""What CUPTI tells, as plain values."""

from __future__ import annotations

from typing import NamedTuple

CALL, MODULE, COMPILER, OTHER, BEGAN = 1, 2, 3, 4, 5
"""What a record is of: a load call that is over, a module that was loaded, the driver's compiler, another overhead, a
load call that has begun."""

CALLS = {
    18: "cuModuleLoad",
    19: "cuModuleLoadData",
    20: "cuModuleLoadDataEx",
    21: "cuModuleLoadFatBinary",
    678: "cuLibraryLoadData",
    679: "cuLibraryLoadFromFile",
}
FROM_FILE = ("cuModuleLoad", "cuLibraryLoadFromFile")


class Record(NamedTuple):
    """What CUPTI told: of what, when (monotonic seconds), on which thread (the system's number), and the image.

    `call` is the number of the load call, `name` its function; `size` the image's, of which `data` is the beginning;
    `stage` and `operation` are those of the driver's compiler; `result` is what the driver answered to the call.
    """

    what: int
    started: float
    ended: float
    thread: int
    call: int = 0
    name: str = ""
    size: int = 0
    data: bytes = b""
    result: int = 0
    stage: int = 0
    operation: int = 0
