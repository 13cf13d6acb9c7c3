"""The one shape of an error: `{"data": null, "error": "text"}`, as Helicone's REST API has it."""

from __future__ import annotations


class ApiError(Exception):
    """Ends a request with `status` and `message`; the message says what was wrong and what was expected."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def bad(message: str) -> ApiError:
    """A request that cannot be understood."""
    return ApiError(400, message)


def not_found(what: str) -> ApiError:
    return ApiError(404, f"{what} not found")
