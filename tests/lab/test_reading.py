import gzip
import json

import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text import reading
from fisheropt_lab.tasks.text.reading import documents
from fisheropt_lab.tasks.text.task import TextSettings, TextTask
from fisheropt_lab.tasks.text.user_text import user_text

PROSE = "Ein Satz über Größe.\nAnother line, and 😀.\n" * 40
LINES = [json.dumps({"text": f"Document {i}.", "url": "x"}) for i in range(60)]
JOINED = "".join(f"Document {i}.\n\n" for i in range(60))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FISHEROPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def contents(corpus):
    return b"".join(text.window(0, len(text)).tobytes() for text in (corpus.train, corpus.validation, corpus.test))


def packed(folder, name, text):
    path, raw = folder / name, text.encode()
    if name.endswith(".gz"):
        raw = gzip.compress(raw)
    elif name.endswith(".zst"):
        raw = zstandard.compress(raw)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", PROSE, PROSE),
        ("a.txt.gz", PROSE, PROSE),
        ("a.md.zst", PROSE, PROSE),
        ("a.jsonl", "\n".join(LINES), JOINED),
        ("a.jsonl.gz", "\n\n".join(LINES), JOINED),
        ("a.ndjson.zst", "\n".join(LINES) + "\n", JOINED),
    ],
)
def test_every_kind_of_file_reads_as_its_text(folder, monkeypatch, chunk, name, text, expected):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    path = packed(folder, name, text)
    assert "".join(documents(path)) == expected
    assert contents(user_text(path)) == expected.encode()


def test_a_folder_of_all_kinds(folder):
    for name, text in (("1.txt", PROSE), ("2.jsonl.gz", "\n".join(LINES)), ("3.txt.zst", PROSE)):
        packed(folder, name, text)
    (folder / "picture.png.gz").write_bytes(b"not looked at")
    corpus = user_text(folder)
    assert contents(corpus) == (PROSE + JOINED + PROSE).encode()
    assert corpus.sizes()["train"] == int(0.9 * len((PROSE + JOINED + PROSE).encode()))


def test_a_text_is_written_out_once_and_again_when_it_changes(folder, cache):
    path = packed(folder, "a.txt.gz", PROSE)
    first = user_text(path)
    (written,) = cache.glob("*.tokens")
    stamp = written.stat().st_mtime_ns
    assert user_text(path).sha256 == first.sha256
    assert written.stat().st_mtime_ns == stamp
    packed(folder, "a.txt.gz", PROSE + "More.\n")
    assert contents(user_text(path)).endswith(b"More.\n")
    assert not list(cache.glob("*.partial"))


def test_an_interrupted_writing_leaves_nothing_to_be_found(folder, monkeypatch, cache):
    path = packed(folder, "a.jsonl", "\n".join(LINES))

    def broken(file):
        yield "half"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fisheropt_lab.tasks.text.spool.documents", broken)
        with pytest.raises(KeyboardInterrupt):
            user_text(path)
    assert contents(user_text(path)) == JOINED.encode()


@pytest.fixture
def tokenizer(tmp_path):
    """Words by white space; what it does not know is token 0."""
    words = {"[UNK]": 0, **{word: i for i, word in enumerate(sorted(set(PROSE.split())), start=1)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "words.json"
    made.save(str(path))
    return path


@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_a_tokenizer_sees_whole_words(folder, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    corpus = user_text(packed(folder, "a.txt", PROSE), tokenizer)
    made = Tokenizer.from_file(str(tokenizer))
    found = [t for text in (corpus.train, corpus.validation, corpus.test) for t in text.window(0, len(text)).tolist()]
    assert found == made.encode(PROSE).ids
    assert 0 not in found
    assert corpus.vocabulary == made.get_vocab_size()
    assert corpus.bytes_per_token == len(PROSE.encode()) / len(found)


def test_losses_are_per_byte_whatever_the_tokens(folder, tokenizer):
    settings = TextSettings("tiny", 2, 4, str(packed(folder, "a.txt", PROSE * 4)), str(tokenizer))
    task = TextTask(settings)
    model = task.model(0)
    batch = task.batch(0, 0)
    assert model.embedding.num_embeddings == task.corpus.vocabulary
    assert batch[0].max() < task.corpus.vocabulary
    per_token = -model(batch[0]).log_softmax(-1).gather(-1, batch[1][..., None]).mean().item()
    assert task.loss(model, batch).item() == pytest.approx(per_token / task.corpus.bytes_per_token, rel=1e-5)
    assert "losses are per byte" in " ".join(task.protocol(10))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", b"no gzip", r"cannot read .*a\.txt\.gz"),
        ("a.txt.gz", gzip.compress(PROSE.encode())[:-20], r"cannot read .*a\.txt\.gz"),
        ("a.txt.zst", b"no zstandard at all", r"cannot read .*a\.txt\.zst"),
        ("a.txt.gz", gzip.compress(b"\xff\xfe"), r"is not UTF-8 text"),
        ("a.jsonl", b'{"text": "good"}\n{"body": "bad"}\n', r'line 2: not a JSON object with a string under "text"'),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: not a JSON object"),
        ("a.jsonl", b"prose\n", r"line 1: not a JSON object"),
        ("a.jsonl", b"\n\n", r"holds no text: it is empty"),
    ],
)
def test_errors_say_what_is_wrong(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(LabError, match=message):
        user_text(folder / name)


def test_a_file_that_is_no_tokenizer(folder, tmp_path):
    path = packed(folder, "a.txt", PROSE)
    with pytest.raises(LabError, match="no such tokenizer file"):
        user_text(path, tmp_path / "missing.json")
    with pytest.raises(LabError, match="is not a tokenizer file"):
        user_text(path, path)
