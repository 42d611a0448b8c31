"""What went wrong on a worker, as the exception that it was: Ray wraps it in several ways, with coloured tracebacks."""

from __future__ import annotations

import ast
import builtins
import re
import sys

COLOUR = re.compile(r"\x1b\[[\d;]*m")
LINKS = re.compile(
    r"\n\s*\n(?:The above exception was the direct cause of|During handling of the above exception, another) .*\n"
)
RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.DOTALL)  # ValueError: text
ERRNO = re.compile(r"^\[Errno (\d+)\] (.*?)(?:: ('.*'|\".*\"))?$", re.DOTALL)
ADDED = re.compile(r"\n?Failed to apply UDF transform after .*", re.DOTALL)  # Ray Data's hint about its retries
DEPTH = 20

# Ray's own errors, by class name: what they mean to the person who started the job.
MEANINGS = {
    "OutOfMemoryError": "a worker was stopped because its machine ran out of memory: set data.workers or "
    "data.memory_per_worker in ray_config.yaml",
    "WorkerCrashedError": "a worker process died: killed, out of memory, or crashed inside a library",
    "ActorDiedError": "a worker process died: killed, out of memory, or crashed inside a library",
    "ActorUnavailableError": "a worker cannot be reached: its machine or the network is down",
    "NodeDiedError": "a machine of the cluster was lost",
    "LocalRayletDiedError": "Ray on this machine stopped: killed, or out of memory",
    "ObjectStoreFullError": "Ray's object store is full: raise object_store_memory in ray_config.yaml",
    "OutOfDiskError": "the disk under Ray's temporary folder is full: make room, or set RAY_TMPDIR to another disk",
    "OwnerDiedError": "the process that a result belonged to was lost",
    "TaskCancelledError": "the job was cancelled",
    "GetTimeoutError": "the cluster did not answer in time",
    "TaskUnschedulableError": "the cluster has no machine that fits what data.* in ray_config.yaml asks for",
    "ActorUnschedulableError": "the cluster has no machine that fits what data.* in ray_config.yaml asks for",
}


def unwrap(error: BaseException) -> BaseException:
    """The exception that a worker raised, or a RuntimeError that says in one line what happened to Ray.

    An error that has nothing to do with Ray comes back as it is, so that every `except` may pass all through here.
    """
    import ray.exceptions as raised

    for _ in range(DEPTH):
        inner = _inside(error)
        if inner is None:
            break
        error = inner
    name = type(error).__name__
    if isinstance(error, raised.RayTaskError | raised.UnserializableException):
        return _from_text(str(error))
    if isinstance(error, raised.RayActorError) and error.actor_init_failed:
        return _from_text(str(error))
    if isinstance(error, raised.RuntimeEnvSetupError):
        return RuntimeError(f"runtime_env in ray_config.yaml could not be set up: {_last_line(str(error))}")
    if name == "ExecutionTimeoutError" and type(error).__module__.startswith("ray."):
        return RuntimeError("the job stood still for too long: the cluster may be short of free CPUs or memory")
    if isinstance(error, raised.RayError):
        meaning = next((MEANINGS[one.__name__] for one in type(error).__mro__ if one.__name__ in MEANINGS), "")
        return RuntimeError(meaning or f"Ray: {_plain(str(error)).strip().splitlines()[0] if str(error) else name}")
    return error


def _inside(error: BaseException) -> BaseException | None:
    """What Ray wrapped, where it kept the exception itself."""
    import ray.exceptions as raised

    failures = getattr(error, "worker_failures", None)  # ray.train.WorkerGroupError
    if isinstance(failures, dict) and failures:
        return _exception(failures[min(failures)])
    if (failure := getattr(error, "controller_failure", None)) is not None:  # ray.train.ControllerError
        return _exception(failure)
    if isinstance(error, raised.RayTaskError):
        cause = _exception(error.cause)
        return None if cause is None or isinstance(cause, raised.UserCodeException) or _is_marked(cause) else cause
    return None


def _exception(found: object) -> BaseException | None:
    return found if isinstance(found, BaseException) else None


def _is_marked(cause: BaseException) -> bool:
    """Whether Ray Data has written its hint into the exception (over the file name of an OSError)."""
    return any(isinstance(word, str) and ADDED.search(word) for word in (*cause.args, getattr(cause, "filename", None)))


def _from_text(text: str) -> BaseException:
    """The exception at the end of a traceback; wrappers that Ray raised from it are passed over."""
    for block in reversed(LINKS.split(_plain(text).strip())):
        told = _after_frames(block)
        match = RAISED.match(told)
        if match and not match[1].startswith("ray."):
            return _rebuilt(match[1], ADDED.sub("", match[2] or "").strip())
    return RuntimeError(_last_line(text))


def _after_frames(block: str) -> str:
    """What follows the last indented line: `ValueError: text`, which may go over several lines."""
    lines = block.splitlines()
    frames = [number for number, line in enumerate(lines) if re.match(r"  File \"|    \s*[\^~]+$", line)]
    start = frames[-1] + 1 if frames else 0
    while start < len(lines) - 1 and not RAISED.match(lines[start]):
        start += 1
    return "\n".join(lines[start:])


def _rebuilt(name: str, message: str) -> BaseException:
    """An exception of the built-in class that `name` is or descends from; RuntimeError where it is unknown here."""
    kind = _class(name)
    base = next((one for one in kind.__mro__ if one.__module__ == "builtins"), RuntimeError) if kind else RuntimeError
    if issubclass(base, OSError) and (match := ERRNO.match(message)):
        number, reason, file = int(match[1]), match[2], match[3]
        return OSError(number, reason, ast.literal_eval(file)) if file else OSError(number, reason)
    if base is Exception or not issubclass(base, Exception) or issubclass(base, UnicodeError):
        return RuntimeError(f"{name.rpartition('.')[2]}: {message}" if message else name)
    return KeyError(message.strip("'\"").removesuffix("\\n")) if base is KeyError else base(message)


def _class(name: str) -> type[BaseException] | None:
    module, _, last = name.rpartition(".")
    found = getattr(sys.modules.get(module) if module else builtins, last, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _plain(text: str) -> str:
    return COLOUR.sub("", text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in _plain(text).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
