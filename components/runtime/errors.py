"""What can go wrong, by whose hand it is mended.

FlywheelError
├── UserError        the input is wrong: exit code 2, nothing was started
│   └── DataError    the data is unfit to be used
├── PlatformError    a backend failed or is away: exit code 3
│   ├── JobFailed    the job ran and ended badly
│   └── Corrupt      stored bytes are not the ones that were written
└── Conflict         somebody else changed the object first
    └── AlreadyExists  write-once key, other content
"""


class FlywheelError(Exception):
    """An error for a person.

    Args:
        message: One sentence that names the value and the limit.
        next: The command, or the edit, that mends it; empty if there is none.
    """

    exit_code = 1

    def __init__(self, message: str, next: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next = next

    def __str__(self) -> str:
        return f"{self.message} Next: {self.next}" if self.next else self.message


class UserError(FlywheelError):
    exit_code = 2


class DataError(UserError):
    pass


class PlatformError(FlywheelError):
    exit_code = 3


class JobFailed(PlatformError):
    pass


class Corrupt(PlatformError):
    pass


class Conflict(FlywheelError):
    exit_code = 3


class AlreadyExists(Conflict):
    pass
