"""The collection's modules, called in this process: the same options, the same server, without the second that a process costs."""

from __future__ import annotations

import json
import types
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._run import Answer, ask, perform


def call(module: types.ModuleType, check: bool = False, **options: t.Any) -> tuple[Answer, HealerError | None]:
    """What a changing module answers to these options, and its failure if there is one."""
    return perform(module.MODULE, _validated(module, options), check=check)


class Caller:
    """One changing module with the lab's connection options."""

    def __init__(self, module: types.ModuleType, options: t.Mapping[str, t.Any]) -> None:
        self.module, self.options = module, dict(options)

    def __call__(self, *, check: bool = False, **options: t.Any) -> Answer:
        """Call it; it must succeed. Options pass through JSON, as a playbook's do."""
        answer, error = call(self.module, check, **{**self.options, **json.loads(json.dumps(options))})
        assert error is None, error
        return answer

    def fails(self, *, check: bool = False, **options: t.Any) -> HealerError:
        """Call it; it must fail."""
        _answer, error = call(self.module, check, **{**self.options, **options})
        assert error is not None
        return error

    def undo(self, answer: Answer, **options: t.Any) -> None:
        """Put back what an answer's undo says, in its order."""
        for arguments in answer["undo"]:
            self(**arguments, **options)


def read(module: types.ModuleType, **options: t.Any) -> dict[str, t.Any]:
    """What an information module answers; without a measurement unless ``sample`` asks for one."""
    unmeasured = {"sample": 0} if "sample" in module.ARGUMENTS["argument_spec"] else {}
    params = _validated(module, {**unmeasured, **options})
    with module.connect(params) as client:
        return dict(module.report(client, ask(module.Request, params)))


def _validated(module: types.ModuleType, options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    arguments = dict(module.ARGUMENTS)
    validated = ArgumentSpecValidator(arguments.pop("argument_spec"), **arguments).validate(options)
    assert not validated.error_messages, validated.error_messages
    return dict(validated.validated_parameters)
