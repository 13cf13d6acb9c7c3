"""What msgspec reads, it reads as the standard library does; what it refuses is no business of these tests."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.api.errors import ApiError
from heliproxy.api.fields import parse_json
from heliproxy.formats.reading import load
from heliproxy.quick_json import REFUSED, read

NUMBERS = [
    "0",
    "-0",
    "-0.0",
    "1.0",
    "1E5",
    "1e-7",
    "0.1",
    "1e308",
    "2.5e-324",
    "9007199254740993",
    "9007199254740993.0",
]
LONG = ["18446744073709551615", "18446744073709551616", "-9223372036854775809", "1" * 400, "1." + "3" * 400, "1" * 5000]


def shown(value: Any) -> str:
    """A value with the types of its numbers and the order of its names."""
    return repr(value)


@pytest.mark.parametrize("text", [*NUMBERS, *LONG])
def test_numbers_are_those_of_the_standard_library(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    assert shown(load(text)) == shown(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
        (b' \n{"a" : [ ]}\t', {"a": []}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b'{"a":NaN,"b":-Infinity,"c":1}', {"a": None, "b": None, "c": 1}),
        (b"1e400", float("inf")),
        (b'"\\ud800"', "\ud800"),
        (b'"\\ud83d\\ude00\\u0000"', "😀\0"),
        (b'"\xff"', "\ufffd"),
        (b'"a\x01b"', None),
        (b"[1,]", None),
        (b"01", None),
        (b"{}{}", None),
        ('{"a":1}'.encode("utf-16"), None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
def test_what_is_odd_is_as_it_was(text: bytes, expected: Any) -> None:
    assert shown(load(text)) == shown(expected)


@pytest.mark.parametrize("raw", [b"NaN", b"[Infinity]", b"", b"{", b'"\xff"', b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused_by_the_api(raw: bytes) -> None:
    with pytest.raises(ApiError):
        parse_json(raw)


def test_half_a_surrogate_pair_in_a_body_of_the_api_is_replaced() -> None:
    assert parse_json(b'["\\ud800", "\\ud83d\\ude00"]') == ["?", "😀"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
DOCUMENTS = st.builds(lambda value, plain: json.dumps(value, ensure_ascii=plain), VALUES, st.booleans())


@given(DOCUMENTS, st.data())
def test_any_text_it_reads_means_the_same_to_both(text: str, data: st.DataObject) -> None:
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 1))] = data.draw(st.sampled_from([b"", b'"', b"\\", b"0", b"e", b".", b","]))
    try:
        found = read(bytes(raw))
    except REFUSED:
        return
    assert shown(found) == shown(json.loads(bytes(raw)))
