"""Modelfiles: what each instruction sets, what is refused and where, and that no bytes do more than be refused."""

from __future__ import annotations

import os
import random
import re
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.ollama_terms import OPTION_KINDS
from tuili.store.modelfile import MAX_MODELFILE_BYTES, Modelfile, is_modelfile, parse_modelfile
from tuili.store.modelfile_text import INSTRUCTIONS, instructions, quoted
from tuili.store.store import Store

SEED, NUM_MUTANTS = int(os.environ.get("TUILI_HOSTILE_SEED", "3")), int(os.environ.get("TUILI_HOSTILE_FOLDERS", "2000"))
PLACED = re.compile(r"Modelfile, line \d+, column \d+: found .+; allowed: .+", re.DOTALL)
WHOLE = '''# a comment
FROM smollm2:135m
  parameter temperature 0.5
PARAMETER temperature 0.7
PARAMETER stop "<|a|>"
PARAMETER stop two words
Parameter num_predict -1
PARAMETER repeat_last_n -1
PARAMETER num_ctx 2048
PARAMETER num_keep 5
PARAMETER use_mmap true
PARAMETER num_gpu 1
SYSTEM """You are "Mario".

# not a comment
"""
SYSTEM "a later one
in two lines"
TEMPLATE """{% for m in messages %}{{ m.content }}{% endfor %}"""
MESSAGE user   Hello, "you"
MESSAGE assistant """Hi.
There."""
LICENSE MIT
LICENSE """And
another"""
REQUIRES 0.5.0
RENDERER qwen3
PARSER qwen3
RENDERER qwen3
'''


def read(text: str | bytes) -> Modelfile:
    return parse_modelfile(text if isinstance(text, bytes) else text.encode(), "Modelfile")


def refusal(text: str | bytes) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read(text)
    assert PLACED.fullmatch(str(caught.value))
    return str(caught.value).removeprefix("Modelfile, ")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_instruction(newline: str, encoding: str) -> None:
    found = read(WHOLE.replace("\n", newline).encode(encoding))
    assert (found.base, found.base_place.line) == ("smollm2:135m", 2)
    assert found.options.sampling == {
        "temperature": 0.7,
        "stop": ("<|a|>", "two words"),
        "max_tokens": None,
        "repeat_last_n": 2**31 - 1,
    }
    assert (found.options.num_ctx, found.options.num_keep) == (2048, 5)
    assert found.parameters[:3] == (("temperature", "0.7"), ("stop", "<|a|>"), ("stop", "two words"))
    assert found.system == "a later one\nin two lines"
    assert found.template == "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert found.messages == (("user", 'Hello, "you"'), ("assistant", "Hi.\nThere."))
    assert found.license == "MIT\n\nAnd\nanother"
    named = [name for name, _ in found.without_effect]
    assert named == ["PARAMETER use_mmap", "PARAMETER num_gpu", "REQUIRES", "RENDERER", "PARSER"]


@pytest.mark.parametrize("name", OPTION_KINDS)
def test_every_parameter_is_either_used_or_named(name: str) -> None:
    value = {"stop": "x", "top_p": "0.5", "min_p": "0.5", "typical_p": "0.5", "mirostat_eta": "0.5"}.get(name, "1")
    found = read(f"FROM m\nPARAMETER {name} {value}\n")
    is_used = bool(found.options.sampling) or name in ("num_ctx", "num_keep")
    assert is_used != bool(found.without_effect)
    assert found.parameters == ((name, value),)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("  spaces around \t", "spaces around"),
        ('"one line"', "one line"),
        ('""', None),
        ('"""a "quoted" word"""', 'a "quoted" word'),
        ('"""ends in a quote""""', 'ends in a quote"'),
        ('"""\nfirst\n\n  indented\n"""', "\nfirst\n\n  indented\n"),
        ('"""in """ the middle"""', 'in """ the middle'),
        ("back\\slash \\n stays", "back\\slash \\n stays"),
        ("it's # no comment", "it's # no comment"),
    ],
)
def test_values_and_quotes(value: str, expected: str | None) -> None:
    assert read(f"FROM m\nSYSTEM {value}\n").system == expected
    assert read(f"SYSTEM {value}\r\nFROM m").system == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1, column 1: found no FROM"),
        ("# only\n\n", "line 3, column 1: found no FROM"),
        ("FROM", "line 1, column 5: found the end of the line; allowed: a value behind FROM"),
        ("FROM  \nx", "line 1, column 7: found the end of the line"),
        ('FROM ""', "line 1, column 6: found an empty FROM"),
        ("FORM m", "line 1, column 1: found 'FORM'; allowed: a comment, or one of FROM, PARAMETER,"),
        ("FROM m\nFROM n", "line 2, column 6: found FROM again; allowed: one FROM, which line 1 has already"),
        ("FROM m\n\n  PARAMETER top_p 2", "line 3, column 13: found PARAMETER top_p '2'; allowed: in (0, 1]"),
        ("FROM m\nPARAMETER top_k 2.5", "line 2, column 11: found PARAMETER top_k '2.5'; allowed: an integer"),
        ("FROM m\nPARAMETER top_k 1_0", "line 2, column 11: found PARAMETER top_k '1_0'; allowed: an integer"),
        ("FROM m\nPARAMETER temperature nan", "line 2, column 11: found PARAMETER temperature 'nan'; allowed: in [0"),
        ("FROM m\nPARAMETER temperature 0.5 # x", "line 2, column 11: found PARAMETER temperature '0.5 # x'; allow"),
        ("FROM m\nPARAMETER use_mmap maybe", "line 2, column 11: found PARAMETER use_mmap 'maybe'; allowed: true or"),
        ("FROM m\nPARAMETER num_ctx 0", "line 2, column 11: found PARAMETER num_ctx '0'; allowed: an integer >= 1"),
        ("FROM m\nPARAMETER num_keep -2", "line 2, column 11: found PARAMETER num_keep '-2'; allowed: an integer"),
        ("FROM m\nPARAMETER num_predict 0", "line 2, column 11: found PARAMETER num_predict '0'; allowed: an integer"),
        ('FROM m\nPARAMETER stop ""', "line 2, column 11: found PARAMETER stop ''; allowed: at most"),
        ("FROM m\nPARAMETER stops x", "line 2, column 11: found PARAMETER 'stops'; allowed: num_predict, num_ctx,"),
        ("FROM m\nPARAMETER stop", "line 2, column 15: found the end of the line; allowed: a value behind PARAMETER s"),
        ("FROM m\nPARAMETER", "line 2, column 10: found the end of the line; allowed: PARAMETER with a name and a"),
        ("FROM m\nMESSAGE bot x", "line 2, column 9: found MESSAGE 'bot'; allowed: MESSAGE with one of system, user,"),
        ('FROM m\nSYSTEM """x\n\n', 'line 2, column 8: found \'"""x\', whose quotes nothing closes; allowed: """ at'),
        ('FROM m\nSYSTEM "x" y', 'line 2, column 8: found \'"x" y\', whose quotes nothing closes; allowed: " at'),
        ('FROM m\nTEMPLATE """\n{{ .System }}"""', "line 2, column 10: found a template in Go's language, which is"),
        ("FROM m\nTEMPLATE {{- range $i, $_ := .Messages }}", "line 2, column 10: found a template in Go's language"),
        ("FROM m\nTEMPLATE /etc/passwd", "line 2, column 10: found TEMPLATE '/etc/passwd', which writes no message"),
        ("FROM m\nADAPTER ./x", "line 2, column 9: found ADAPTER './x'; allowed: no ADAPTER: adapters cannot be"),
        ("FROM m\nDRAFT ./x", "line 2, column 7: found DRAFT './x'; allowed: no DRAFT: --speculative-config"),
        (b"FROM m\nSYSTEM \xff", "line 2, column 8: found byte 0xff; allowed: UTF-8 text"),
        (b"FROM m\n" + b"#" * MAX_MODELFILE_BYTES, "line 1, column 1: found a larger file; allowed: at most"),
    ],
)
def test_what_is_refused_and_where(text: str | bytes, expected: str) -> None:
    assert refusal(text).startswith(expected)


def test_what_a_template_in_go_becomes_is_said() -> None:
    assert refusal("FROM m\nTEMPLATE {{ .Prompt }}").endswith(
        "a template in Jinja; leave TEMPLATE out to use the one that the weights come with, which is what most need"
    )


def test_a_base_is_a_name_or_a_path_beside_the_file(tmp_path: Path) -> None:
    (folder := tmp_path / "deep").mkdir()
    (weights := folder / "w.gguf").write_bytes(b"GGUF")
    store = Store(tmp_path / "home", {})

    def base(text: str) -> str:
        (folder / "Modelfile").write_text(f"FROM {text}\n")
        return store.base_name(str(folder / "Modelfile"))

    assert base("smollm2") == "smollm2"
    assert base("org/name") == "org/name"
    assert Path(base("./w.gguf")) == Path(base("w.gguf")) == Path(base(str(weights))) == weights
    assert Path(base("../deep")).samefile(folder)
    found = store.resolve(str(folder / "Modelfile")) if base("w.gguf") else None
    assert found is not None
    assert found.modelfile is not None
    assert (found.name, found.path) == (str(folder / "Modelfile"), weights)
    for text, reason in (
        ("./gone.gguf", "found FROM './gone.gguf', which is no file or folder; allowed: a model's name, a .gguf"),
        ("./Modelfile", "found FROM './Modelfile', which is a Modelfile itself; allowed: a model's name"),
        ("a/b/c/d", "found FROM 'a/b/c/d'; allowed: a model's name, a .gguf file or a model's folder; model name"),
        ("x\0y", "found FROM 'x\\x00y'; allowed: a model's name"),
    ):
        with pytest.raises(InvalidRequestError, match=re.escape(f"Modelfile, line 1, column 6: {reason}")):
            base(text)
    assert base("smollm2") == "smollm2"
    with pytest.raises(ModelNotFoundError, match="fetch it with `tuili pull smollm2:135m`"):
        store.resolve(str(folder / "Modelfile"))


def test_which_files_are_modelfiles(tmp_path: Path) -> None:
    contents = {
        "Modelfile": b"",
        "modelfile.mario": b"x",
        "mario.Modelfile": b"x",
        "mario": b"\n# my own\n  from m",
        "notes": b"From here on",
        "w.gguf": b"FROM m",
        "weights": b"GGUF\3\0\0\0",
        "text": b"formerly m",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    found = [name for name in contents if is_modelfile(tmp_path / name)]
    assert found == ["Modelfile", "modelfile.mario", "mario.Modelfile", "mario", "notes"]


def test_a_pipe_is_no_modelfile(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "Modelfile")
    assert Store(tmp_path / "home", {}).modelfile(str(tmp_path / "Modelfile")) is None


LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20)
TEXTS = st.lists(LINES, min_size=1, max_size=4).map("\n".join).filter(lambda t: not re.search(r'"[^\S\n]*(\n|$)', t))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example(" a")
@example('"x" y')
@example("")
def test_what_is_written_is_read_again(text: str) -> None:
    (found,) = instructions(f"SYSTEM {quoted(text)}\n", "Modelfile")
    assert found.value == text


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore")))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _outcome(b"FROM m\n" + data)
    _outcome(data)


def test_mutants_are_read_or_refused_in_bounded_time_and_memory() -> None:
    chooser = random.Random(SEED)
    start = time.process_time()
    num_read = sum(_outcome(_mutant(chooser)) for _ in range(NUM_MUTANTS))
    assert 0 < num_read < NUM_MUTANTS
    assert time.process_time() - start < 0.03 * NUM_MUTANTS
    tracemalloc.start()
    for _ in range(20):
        _outcome(_mutant(chooser))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("piece", ['"', '"""', " ", '" ', "{{ a ", "{{- ", "#\n", "M ", "\n", "MESSAGE user x\n"])
def test_a_file_of_one_piece_over_and_over_takes_no_time(piece: str) -> None:
    start = time.process_time()
    for before in ("FROM m\nTEMPLATE ", 'FROM m\nSYSTEM """'):
        _outcome((before + piece * ((MAX_MODELFILE_BYTES - 100) // len(piece))).encode())
    assert time.process_time() - start < 20


def _outcome(data: bytes) -> bool:
    """Whether it was read; else the refusal says where, what and what is allowed."""
    try:
        read(data)
    except InvalidRequestError as error:
        told = str(error)
    else:
        return True
    assert PLACED.fullmatch(told), told
    return False


def _mutant(chooser: random.Random) -> bytes:
    """WHOLE with lines moved, lost, cut and doubled, and bytes changed."""
    lines = WHOLE.encode().splitlines(keepends=True)
    pieces = [
        *(name.encode() for name in INSTRUCTIONS),
        *(b'"', b'"""', b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b" ", b"1e400", b"-1", b"9" * 5000, b"{{ .X }}", b"#"),
    ]
    for _ in range(chooser.randint(1, 4)):
        at = chooser.randrange(len(lines))
        line = lines[at]
        cut = chooser.randint(0, len(line))
        change = chooser.randrange(4)
        if change == 0:
            lines[at] = line[:cut] + chooser.choice(pieces) + line[cut:]
        elif change == 1:
            lines[at] = line[:cut]
        elif change == 2:
            lines.insert(chooser.randrange(len(lines)), line)
        elif len(lines) > 1:
            del lines[at]
    return b"".join(lines)
