from typing import Any

class Tasks:
    @staticmethod
    def blocking_status(prox: Any, task_id: str, timeout: float = ..., polling_interval: float = ...) -> dict[str, Any] | None: ...
    @staticmethod
    def decode_log(log_list: list[dict[str, Any]]) -> str: ...
