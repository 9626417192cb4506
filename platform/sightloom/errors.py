"""Errors that a person reads: what went wrong, where, and what to do."""


class SightloomError(Exception):
    """A failure that is explained to the user instead of being shown as a traceback.

    Args:
        message: what went wrong and where, in one or two sentences.
        hint: what to do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UserMistake(SightloomError):
    """The input, the configuration or the command line is wrong: nothing was done, a retry changes nothing."""

    exit_code = 2


class GateNotPassed(SightloomError):
    """A promotion gate looked at the evidence and did not let the candidate pass."""

    exit_code = 3


class MayPass(SightloomError):
    """The machinery failed more often than it may; what was done is kept, and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may start the job again
