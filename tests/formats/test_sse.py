import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.formats.sse import Event, LineSplitter, SseSplitter


def events(*pieces: bytes) -> list[Event]:
    splitter = SseSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [("", b"a")]),
        (b"data:a\n\n", [("", b"a")]),
        (b"data:  a\n\n", [("", b" a")]),
        (b"event: x\ndata: a\n\n", [("x", b"a")]),
        (b"data: a\nevent: x\nid: 7\nretry: 5\n\n", [("x", b"a")]),
        (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
        (b": comment\n\ndata: a\n\n", [("", b"a")]),
        (b": OPENROUTER PROCESSING\n\n: again\n\ndata: a\n\n", [("", b"a")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
        (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
        (b"data: a\r\n\ndata: b\n\r\n", [("", b"a"), ("", b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"event: x\n\ndata: a\n\n", [("", b"a")]),
        (b"\n\n\ndata: a\n\n\n\n", [("", b"a")]),
        ("data: é€😀\n\n".encode(), [("", "é€😀".encode())]),
    ],
)
def test_streams_become_events(stream: bytes, expected: list[tuple[str, bytes]]) -> None:
    assert events(stream) == expected
    assert events(*(stream[i : i + 1] for i in range(len(stream)))) == expected


def test_an_event_without_end_is_the_tail() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b"event: x\ndata: a\n") == []
    assert splitter.tail() == [("x", b"a")]
    assert splitter.feed(b"data: b\n\n") == [("x", b"a\nb")]
    assert splitter.tail() == []


def test_a_line_without_end_is_the_tail() -> None:
    splitter = SseSplitter()
    splitter.feed(b"data: [DO")
    splitter.feed(b"NE]")
    assert splitter.tail() == [("", b"[DONE]")]


def test_a_line_that_is_too_long_is_skipped() -> None:
    splitter = SseSplitter(limit=100)
    found = splitter.feed(b"data: a\n\ndata: ")
    for _ in range(50):
        found += splitter.feed(b"x" * 10)
    found += splitter.feed(b"\n\ndata: b\n\n")
    assert found == [("", b"a"), ("", b"b")]


def test_an_event_that_is_too_long_is_skipped_whole() -> None:
    splitter = SseSplitter(limit=100)
    long = b"data: " + b"x" * 200 + b"\n\n"
    found = splitter.feed(b"\n" + long + b"data: b\n\n") + splitter.feed(long + b"data: c\n\n")
    assert found == [("", b"b"), ("", b"c")]


def test_lines_of_json_are_events() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b'{"a":1}\r\n\n{"b"') == [("", b'{"a":1}')]
    assert splitter.feed(b':2}\ndata: {"c":3}\n{"d":4}') == [("", b'{"b":2}'), ("", b'{"c":3}')]
    assert splitter.tail() == [("", b'{"d":4}')]


@given(
    pieces=st.lists(st.sampled_from([b"data: a", b"\n", b"\r", b"\r\n", b":c", b"event: e", b"\n\n", b"\xef\xbb\xbf"])),
    cuts=st.lists(st.integers(1, 5), min_size=1),
)
def test_cuts_change_nothing(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces)
    splitter = SseSplitter()
    found: list[Event] = []
    position = index = 0
    while position < len(stream):
        size = cuts[index % len(cuts)]
        found += splitter.feed(stream[position : position + size])
        position += size
        index += 1
    assert found == events(stream)


BLOCKS = [
    b"data: a\n\n",
    b"event: e\ndata: b\n\n",
    b"data: c\ndata: d\n\n",
    b": x\n\n",
    b"\n",
    b"data:f\n\n",
    b"data: g",
]


@given(blocks=st.lists(st.sampled_from(BLOCKS), max_size=8), cut=st.integers(0, 60))
def test_whole_events_are_cut_out_as_lines_would_be(blocks: list[bytes], cut: int) -> None:
    stream = b"".join(blocks)
    # A carriage return anywhere in a piece switches the short cut off.
    assert events(b"\n", stream[:cut], stream[cut:]) == events(*(b"\n" + stream + b":\r").splitlines(keepends=True))
