# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Words as systemd reads them in its unit files and in the files that ``EnvironmentFile=`` names."""

from __future__ import annotations

import re
import typing as t

from ansible.errors import AnsibleFilterError


def unit_words(words: t.Sequence[str]) -> str:
    """Quote each word, for ``ExecStart=:`` (with the colon, so that a dollar is one) and ``Environment=``."""
    return " ".join('"' + unit_line(word).replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)


def unit_line(value: str) -> str:
    """A value that is taken as it stands to the end of its line, such as that of ``WorkingDirectory=``: only its percent signs mean something else there."""
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise AnsibleFilterError(f"cannot write {text!r} into a unit file: it has a control character")
    return text.replace("%", "%%")


def environment_lines(environment: t.Mapping[str, t.Any]) -> str:
    """A file for ``EnvironmentFile=``, which a shell reads in the same way."""
    for name in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise AnsibleFilterError(f"cannot set the environment variable {str(name)!r}: a name has letters, digits and underscores only")
    return "".join(f'{name}="{_escaped(str(value))}"\n' for name, value in sorted(environment.items()))


def _escaped(value: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", value)


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"environment_lines": environment_lines, "unit_line": unit_line, "unit_words": unit_words}
