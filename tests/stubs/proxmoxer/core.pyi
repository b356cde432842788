from typing import Any

class ResourceException(Exception):
    status_code: int
    status_message: str
    content: str
    errors: Any

class AuthenticationError(Exception): ...
