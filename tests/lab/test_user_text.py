import pytest

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text import user_text as module
from fisheropt_lab.tasks.text.task import TextSettings, TextTask
from fisheropt_lab.tasks.text.user_text import user_text


def contents(text):
    return text.window(0, len(text)).tobytes()


def test_splits_of_a_file_are_its_parts_in_order(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(32, 127)) * 4)
    corpus = user_text(path)
    assert corpus.sizes() == {"train": 342, "validation": 19, "test": 19}
    assert contents(corpus.train) + contents(corpus.validation) + contents(corpus.test) == path.read_bytes()


def test_a_folder_is_its_text_files_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    files = {"b.txt": b"bb" * 30, "a.md": b"aa" * 20, "sub/c.rst": b"cc" * 10, "d.txt": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8")  # not text, not looked at
    corpus = user_text(tmp_path)
    whole = files["a.md"] + files["b.txt"] + files["sub/c.rst"]
    assert contents(corpus.train) + contents(corpus.validation) + contents(corpus.test) == whole
    assert corpus.sizes() == {"train": 108, "validation": 6, "test": 6}


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
def test_utf8_is_checked_across_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    good = "aé€😀".encode() * 30
    (tmp_path / "good.txt").write_bytes(good)
    assert sum(user_text(tmp_path / "good.txt").sizes().values()) == len(good)
    for bad in (b"\xff", b"\xc3(", b"\xf0\x9f\x98"):  # never a byte; a character cut short by another, and by the end
        path = tmp_path / "bad.txt"
        path.write_bytes("aé€😀".encode() + bad)
        with pytest.raises(LabError, match=r"bad\.txt is not UTF-8 text: bad byte at offset 10$"):
            user_text(path)


def test_the_same_bytes_have_the_same_hash_wherever_they_lie(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"the same" * 50)
    assert user_text(tmp_path / "a.txt").sha256 == user_text(tmp_path / "b.txt").sha256


def test_errors_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(LabError, match="no such file or folder"):
        user_text(tmp_path / "missing.txt")
    with pytest.raises(LabError, match="holds no text: it is empty"):
        user_text(tmp_path / "empty.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LabError, match="no text files in"):
        user_text(tmp_path / "folder")


def test_a_text_too_short_for_a_sequence(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 400)
    settings = TextSettings(size="tiny", batch_size=2, seq_len=20, data=str(path))
    with pytest.raises(LabError, match=r"validation split .* has 20 bytes, and a sequence needs 21"):
        TextTask(settings)
