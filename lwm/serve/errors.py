"""Errors of the server in OpenAI's form, with the HTTP status of each kind."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "exceed_context_size_error",
    "rate_limit_error",
    "server_error",
    "not_supported_error",
    "unavailable_error",
]
_STATUS: Mapping[Kind, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "exceed_context_size_error": 400,
    "rate_limit_error": 429,
    "server_error": 500,
    "not_supported_error": 501,
    "unavailable_error": 503,
}


class ApiError(Exception):
    """An answer to a request that the server does not fulfil."""

    def __init__(
        self,
        message: str,
        kind: Kind = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ):
        """Describes the error.

        Args:
            message: One line that names the thing and the remedy.
            kind: OpenAI's `type`.
            param: The field of the request that is wrong.
            code: A short name for programs, such as `context_length_exceeded`.
            status: The HTTP status; None: that of the kind.
            headers: More headers of the answer, such as Retry-After.
            **more: More fields of the error.
        """
        super().__init__(message)
        self.status = _STATUS[kind] if status is None else status
        # OpenAI's clients try again after these, though the same request has the same answer.
        final = {"x-should-retry": "false"} if self.status in (409, 501) else {}
        self.headers = final | dict(headers or {})
        self._fields = {"message": message, "type": kind, "param": param, "code": code, **more}

    def at(self, param: str) -> "ApiError":
        """Returns the same error, of a field of the request."""
        made = copy.copy(self)
        made._fields = self._fields | {"param": param}
        return made

    def to_json(self) -> dict[str, Any]:
        """Returns the body of the answer."""
        return {"error": self._fields}


def not_supported(name: str, remedy: str) -> ApiError:
    """Returns the error for a field that OpenAI has and this server has not.

    Args:
        name: The field, and its value or other words after it.
        remedy: Says what to do instead.
    """
    field = name.partition(" ")[0]
    return ApiError(f"{name} is not supported; {remedy}", "not_supported_error", param=field)
