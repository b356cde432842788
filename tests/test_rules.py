"""What is true of every module of the collection, now and later."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import typing as t

import pytest
import yaml

from ansible_collections.homelab.healer.plugins.module_utils import _errors
from ansible_collections.homelab.healer.plugins.module_utils._run import change_options
from tests.lab.playbooks import COLLECTION

MODULES = sorted(path.stem for path in (COLLECTION / "plugins/modules").glob("*.py"))
PYTHON = sorted((COLLECTION / "plugins").rglob("*.py"))
KERNEL = COLLECTION / "plugins/module_utils/_run.py"
CONTROLLER = COLLECTION / "plugins/plugin_utils/ledger.py"
"""The kernel's other half, which runs a module of the ledger in the controller's own process."""
PREFIX = "ansible_collections.homelab.healer.plugins"


def load(name: str) -> t.Any:
    return importlib.import_module(f"{PREFIX}.modules.{name}")


def documented(name: str, section: str) -> t.Any:
    return yaml.safe_load(getattr(load(name), section))


def options(name: str) -> dict[str, t.Any]:
    """The documented options, with those of the fragments."""
    documentation = documented(name, "DOCUMENTATION")
    merged: dict[str, t.Any] = {}
    for source in (documentation["options"], *(_fragment(fragment) for fragment in documentation["extends_documentation_fragment"])):
        for option, facts in source.items():
            merged[option] = {**facts, **merged.get(option, {})}
    return merged


def _fragment(name: str) -> dict[str, t.Any]:
    _namespace, _collection, plugin, *part = name.split(".")
    fragment = importlib.import_module(f"{PREFIX}.doc_fragments.{plugin}").ModuleDocFragment
    return dict(yaml.safe_load(getattr(fragment, (part or ["documentation"])[0].upper()))["options"])


def test_there_are_modules() -> None:
    assert len(MODULES) >= 6


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(COLLECTION)))
def test_one_kernel_and_no_broad_except(path: t.Any) -> None:
    tree = ast.parse(path.read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    if path not in (KERNEL, CONTROLLER):
        assert not {"check_mode", "fail_json", "exit_json"} & set(names)
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
        assert handler.type is not None
        assert "Exception" not in [node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)]
    untyped = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.returns is None]
    assert untyped == []


@pytest.mark.parametrize("name", MODULES)
def test_main_is_short_and_the_names_stand_in_order(name: str) -> None:
    tree = ast.parse((COLLECTION / f"plugins/modules/{name}.py").read_text())
    defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    main = defined[-1]
    assert main.name == "main"
    assert (main.end_lineno or 0) - main.lineno < 25
    names = [node.name for node in defined]
    order = [wanted for wanted in ("Request", "observe", "plan", "report", "act", "main") if wanted in names]
    assert [found for found in names if found in order] == order
    assert names[0] == "Request"


@pytest.mark.parametrize("name", MODULES)
def test_options_are_one_in_code_documentation_and_request(name: str) -> None:
    module = load(name)
    spec = module.ARGUMENTS["argument_spec"]
    written = options(name)
    assert set(spec) == set(written)
    for option, facts in spec.items():
        for key in ("type", "elements", "default", "choices"):
            assert facts.get(key) == written[option].get(key), (option, key)
        assert sorted(facts.get("aliases", [])) == sorted(written[option].get("aliases", [])), option
    adapter = importlib.import_module(module.connect.__module__)
    connection = {} if hasattr(module, "act") else {**adapter.OPTIONS, **getattr(adapter, "WAIT", {})}
    kernel = change_options(parallel=1) if hasattr(module, "MODULE") else {}
    assert {field.name for field in dataclasses.fields(module.Request)} == set(spec) - set(connection) - set(kernel)


@pytest.mark.parametrize("name", MODULES)
def test_documentation_is_whole(name: str) -> None:
    documentation = documented(name, "DOCUMENTATION")
    assert documentation["module"] == name
    assert {"short_description", "description", "version_added", "author", "seealso"} <= set(documentation)
    assert all("name" in task for task in documented(name, "EXAMPLES"))
    for facts in documented(name, "RETURN").values():
        assert {"description", "returned", "type"} <= set(facts)
    groups = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())["action_groups"]
    assert any(name in group for group in groups.values())


ERRORS = [error for error in vars(_errors).values() if isinstance(error, type) and issubclass(error, _errors.HealerError) and error is not _errors.HealerError]


def test_every_kind_of_failure_has_a_code_of_its_own() -> None:
    assert len({error.code for error in ERRORS}) == len(ERRORS) == 10
    assert {error.code for error in ERRORS if error.retryable} == {"unreachable", "conflict"}


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(COLLECTION)))
def test_every_failure_says_what_why_and_what_to_do(path: t.Any) -> None:
    kinds = {error.__name__ for error in ERRORS}
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in kinds:
            assert {"why", "fix"} <= {keyword.arg for keyword in call.keywords}, ast.unparse(call)
            assert len(call.args) == 1


def test_nothing_in_the_collection_knows_the_lab() -> None:
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("tests")
