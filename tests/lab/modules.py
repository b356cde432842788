"""The collection's modules, called in this process: the same options, the same server, without the second that a process costs."""

from __future__ import annotations

import types
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._run import Answer, ask, perform


def call(module: types.ModuleType, check: bool = False, **options: t.Any) -> tuple[Answer, HealerError | None]:
    """What a changing module answers to these options, and its failure if there is one."""
    return perform(module.MODULE, _validated(module, options), check=check)


def read(module: types.ModuleType, **options: t.Any) -> dict[str, t.Any]:
    """What an information module answers; without a measurement unless ``sample`` asks for one."""
    params = _validated(module, {"sample": 0, **options})
    with module.connect(params) as client:
        return dict(module.report(client, ask(module.Request, params)))


def _validated(module: types.ModuleType, options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    arguments = dict(module.ARGUMENTS)
    validated = ArgumentSpecValidator(arguments.pop("argument_spec"), **arguments).validate(options)
    assert not validated.error_messages, validated.error_messages
    return dict(validated.validated_parameters)
