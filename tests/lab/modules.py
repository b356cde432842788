"""The collection's modules, called in this process: the same options, the same engine, without the second that a process costs."""

from __future__ import annotations

import types
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._run import Answer, perform


def call(module: types.ModuleType, check: bool = False, **options: t.Any) -> tuple[Answer, HealerError | None]:
    """What a changing module answers to these options, and its failure if there is one."""
    arguments = dict(module.ARGUMENTS)
    validated = ArgumentSpecValidator(arguments.pop("argument_spec"), **arguments).validate(options)
    assert not validated.error_messages, validated.error_messages
    return perform(module.MODULE, validated.validated_parameters, check=check)
