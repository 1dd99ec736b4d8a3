"""What can go wrong, as classes that a program can act on.

Every error says what happened and where (`context`), and what to do about it (`advice`, which may be None); `kind` is one word for its
class. They can be pickled. They never hold secrets: user information and queries are left out of URLs.
"""

from __future__ import annotations


class Error(Exception):
    """Whatever farfeed raises of its own. `str` gives context, cause and advice in one line."""

    kind = "other"

    def __init__(self, message: str, *, context: str | None = None, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context = message if context is None else context
        self.advice = advice

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.message, self.context, self.advice)


class NotFoundError(Error, FileNotFoundError):
    """No object, shard, field or device of that name."""

    kind = "not_found"


class AuthError(Error, PermissionError):
    """The store refused the credentials, or there were none; or a server's certificate does not prove that it is the one meant."""

    kind = "auth"


class ThrottledError(Error):
    """The store asked to slow down for longer than it was to be waited for."""

    kind = "throttled"


class StalledError(Error, TimeoutError):
    """No progress within the deadline."""

    kind = "stalled"


class CorruptError(Error):
    """Bytes are not what they claim to be: a broken shard, an index of another shard, an object that changed."""

    kind = "corrupt"


class ConfigError(Error, ValueError):
    """The options contradict each other or the dataset."""

    kind = "config"


class TopologyError(Error, ValueError):
    """Rank, world size and state do not fit each other."""

    kind = "topology"


class DeviceError(Error):
    """The accelerator or its driver failed, or has too little memory."""

    kind = "device"


class UnsupportedError(Error):
    """Well-formed, but not something that this build, kernel, server or process can do."""

    kind = "unsupported"


class IoError(Error, OSError):
    """The operating system or the network failed in a way that has no better name."""

    kind = "io"


def _rebuilt(kind: type[Error], message: str, context: str, advice: str | None) -> Error:
    return kind(message, context=context, advice=advice)
