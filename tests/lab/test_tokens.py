import numpy as np
import pytest

from fisheropt_lab.tasks.text.tokens import FileSpan, TokenText


@pytest.fixture
def text_and_bytes(tmp_path):
    """A text of arrays and file spans, an empty piece among them, and the same bytes in one string."""
    path = tmp_path / "letters"
    path.write_bytes(b"abcdefghij")
    digits = np.frombuffer(b"0123", dtype=np.uint8)
    empty = np.empty(0, dtype=np.uint8)
    return TokenText([digits, FileSpan(path, 2, 7), empty, FileSpan(path, 0, 1)]), b"0123" + b"cdefg" + b"a"


def test_every_window_reads_as_one_text(text_and_bytes):
    text, whole = text_and_bytes
    assert len(text) == len(whole)
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert text.window(start, stop - start).tobytes() == whole[start:stop]


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (9, 2), (11, 0)])
def test_window_outside_the_text(text_and_bytes, start, length):
    with pytest.raises(IndexError, match="of a text of 10 tokens"):
        text_and_bytes[0].window(start, length)


def test_files_are_mapped_not_read(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"abc")
    assert isinstance(FileSpan(path, 0, 3)[0:2], np.memmap)


def test_more_files_than_descriptors(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    spans = []
    for i in range(200):
        path = tmp_path / str(i)
        path.write_bytes(b"%03d" % i)
        spans.append(FileSpan(path, 0, 3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        assert TokenText(spans).window(0, 600).tobytes() == b"".join(b"%03d" % i for i in range(200))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
