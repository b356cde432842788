# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._sizes import Quantity, Relative, Size, parse_relative, parse_size


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("512", 512),
        ("512b", 512),
        ("1k", 1024),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "m", "twelve", "1x", "1 2m", "0x10", "1e9", "nan", "--5m", "{{ x }}"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a size is"):
        parse_size(text)


@pytest.mark.parametrize("number", [0, 1, 1023, 1024, 1536, 512 << 20, (512 << 20) + 1, 3 << 30])
def test_a_size_shows_itself_readably_and_stays_a_number(number: int) -> None:
    shown = str(Size(number))
    assert shown.endswith("B") or shown.endswith(f"({number})")
    if "(" not in shown:
        assert parse_size(shown) == number


@pytest.mark.parametrize(("text", "present", "result"), [("+25%", 400, 500), ("-25%", 400, 300), ("+1k", 1024, 2048), ("- 1k", 4096, 3072), ("+0%", 7, 7)])
def test_relative_values(text: str, present: int, result: int) -> None:
    relative = parse_relative(text, parse_size)
    assert isinstance(relative, Relative)
    assert relative.of(present) == result
    assert isinstance(relative.of(Size(present)), Size)


def test_a_quantity_has_bounds_and_words_for_not_set() -> None:
    quantity = Quantity(float, 0.5, 4, ("default", "unlimited"))
    assert quantity.read("Unlimited") == "default"
    assert quantity.read("1.5") == 1.5
    for bad in ("0", "0.1", "5", "nan", "inf", "x", ""):
        with pytest.raises(ValueError, match=r"."):
            quantity.read(bad)
    for ambiguous in ("--25%", "+-25%", "+inf%", "+nan%", "-", "+%"):
        with pytest.raises(ValueError, match=r"."):
            quantity.read(ambiguous)
    with pytest.raises(ValueError, match="one less or no limit"):
        quantity.read("-1")
