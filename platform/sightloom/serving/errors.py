"""Errors of the endpoint: one shape for every status, the framework's own included (serving.md §2)."""

from typing import Any, Final

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is answered with an error: `{"error": {message, type, param, code}}` and an HTTP status.

    The message names no key, no query of a URL and no picture. `param` is a path such as `messages[1].content[0]`.
    It survives pickling, because engines raise it on the other side of a Serve handle.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, code, message, param, retry_after_s)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to this error."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


class EngineDied(ApiError):
    """The engine ended while it answered; what has not reached the client yet may be asked elsewhere."""


def engine_died() -> EngineDied:
    """A 502 for the requests that were in flight."""
    return EngineDied(502, "engine_error", "the engine was lost while it answered", retry_after_s=1)


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400: the client's request is wrong at `param`."""
    return ApiError(400, code, message, param)


def unsupported(param: str, why: str) -> ApiError:
    """A 400: the parameter is known, but this endpoint or this engine does not serve it."""
    return ApiError(400, "unsupported_parameter", f"'{param}' is not supported: {why}", param)
