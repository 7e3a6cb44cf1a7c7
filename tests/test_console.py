"""The command line on real pipes, terminals and closed streams: no traceback, no lost answer, the right exit code.

Each case is a process of its own, forked from one that has imported everything, which is what takes the time. Two are
started as a user starts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pfengine

SERVER = """
import contextlib, io, json, os, signal, socket, sys, traceback
from pfengine import __main__ as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it

control, checkpoint = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # what all of them would import
    sys.argv = ["pfengine", "demo", checkpoint]
    cli.main()
import pfengine.evaluation.pictures, pfengine.evaluation.machine
while True:
    message, given, _, _ = socket.recv_fds(control, 1 << 20, 3)
    if not message:
        os._exit(0)
    if child := os.fork():
        for number in given:
            os.close(number)
        control.send(b"%d" % child)
        control.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    else:
        break
request = json.loads(message)
control.close()
os.setsid()
for number in range(3):
    os.close(number)
for number, source in zip(request["streams"], given):
    os.dup2(source, number)
    os.close(source)
if request["terminal"]:
    os.login_tty(os.dup(0))
for number, name in enumerate(("stdin", "stdout", "stderr")):  # as the interpreter does when it starts
    stream = None
    if number in request["streams"]:
        errors = "backslashreplace" if number == 2 else "strict"
        buffer = open(number, "wb" if number else "rb", closefd=False)
        terminal = buffer.isatty()
        stream = io.TextIOWrapper(buffer, request["encoding"], errors, line_buffering=terminal or number == 2)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)
sys.argv = ["pfengine", *request["arguments"]]
os.chdir(request["directory"])
try:
    code = cli.main()
except SystemExit as stop:
    code = stop.code
except BaseException:
    traceback.print_exc()
    code = 1
for stream in (sys.stdout, sys.stderr):  # as at the interpreter's end; the rest of it takes a second
    try:
        stream.flush()
    except OSError:
        code = 120
os._exit(code)
"""
SECONDS = 60.0  # nothing here takes one; a busy machine may


class Process:
    """One run of the command line; its streams are descriptors of ours."""

    def __init__(self, control: socket.socket, ends: tuple[int | None, ...], **request: Any) -> None:
        streams = {number: end for number, end in enumerate(ends) if end is not None}
        message = json.dumps(request | {"streams": list(streams)})
        socket.send_fds(control, [message.encode()], list(streams.values()))
        self.control, self.pid = control, int(control.recv(100))

    def wait(self) -> int:
        self.control.settimeout(SECONDS)
        return int(self.control.recv(100))


class Outcome:
    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out.decode("latin-1"), err.decode("latin-1")
        assert "Traceback" not in self.err
        assert "Exception" not in self.err

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture(scope="module")
def control(checkpoint: str) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}  # one thread, so that it can be forked
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER, str(theirs.fileno()), checkpoint],
        pass_fds=[theirs.fileno()],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    yield ours
    ours.close()
    assert server.wait(SECONDS) == 0


@pytest.fixture(scope="module")
def checkpoint(make_text_checkpoint: Callable[..., Path]) -> str:
    """Its labels are in no code page but UTF-8."""
    labels = {"0": "schlecht böse", "1": "良い", "2": "[b]so so[/b]"}
    return str(make_text_checkpoint(config={"id2label": labels}, threshold=0.5))


@pytest.fixture
def start(control: socket.socket, tmp_path: Path) -> Callable[..., Process]:
    def call(
        *arguments: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        encoding: str = "utf-8",
        terminal: bool = False,
    ) -> Process:
        return Process(
            control, (stdin, stdout, stderr),
            arguments=arguments, encoding=encoding, terminal=terminal, directory=str(tmp_path),
        )  # fmt: skip

    return call


@pytest.fixture
def run(start: Callable[..., Process], tmp_path: Path) -> Callable[..., Outcome]:
    """One run with files as its streams; `closed` are not there, and `out` may be another file."""

    def call(
        *arguments: str,
        stdin: bytes = b"",
        closed: tuple[int, ...] = (),
        out: str | None = None,
        encoding: str = "utf-8",
    ) -> Outcome:
        files = [tmp_path / name for name in ("in", "out", "err")]
        for file in files:
            file.write_bytes(stdin if file.name == "in" else b"")
        with contextlib.ExitStack() as stack:
            given = [
                stack.enter_context(open(path, mode)).fileno()
                for path, mode in ((files[0], "rb"), (out or files[1], "wb"), (files[2], "wb"))
            ]
            ends = [None if number in closed else end for number, end in enumerate(given)]
            code = start(*arguments, stdin=ends[0], stdout=ends[1], stderr=ends[2], encoding=encoding).wait()
        return Outcome(code, files[1].read_bytes(), files[2].read_bytes())

    return call


def read_line(end: int, encoding: str = "utf-8") -> str:
    """A line from a pipe or terminal, once it is there; the test fails where none comes."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([end], [], [], SECONDS)[0], f"no line came after {line!r}"
        line += os.read(end, 1)
    return line.decode(encoding)


TEXT = "日本 good café"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "\\u65e5\\u672c good caf\\xe9"), ("latin-1", "\\u65e5\\u672c good caf\xe9"),
     pytest.param("cp1252", "\\u65e5\\u672c good caf\xe9", marks=pytest.mark.slow)],
)  # fmt: skip
def test_another_code_page_loses_no_answer(run, checkpoint: str, encoding: str, shown: str) -> None:
    result = run("classify", checkpoint, TEXT, "bad", "--top-k", "0", encoding=encoding)
    assert (result.code, result.err) == (0, "")
    assert result.lines[0].endswith(shown)
    assert "\\u826f\\u3044" in result.lines[0]
    answers = run("classify", checkpoint, TEXT, "bad", "--top-k", "0", "--json", encoding=encoding).lines
    assert {answer["label"] for answer in json.loads(answers[0])} == {"schlecht böse", "良い", "[b]so so[/b]"}
    for command, part in (("info", "\\u826f\\u3044"), ("demo", "| [b]so so[/b]")):
        result = run(command, checkpoint, encoding=encoding)
        assert result.code == 0, result.err
        assert part in result.out


def test_a_report_in_another_code_page(run, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "日本.tsv").write_text("sentence\tlabel\ngood\t0\nbad\t1\n", encoding="utf-8")
    result = run(
        "evaluate", checkpoint, "日本.tsv", "--repeats", "1", "--thresholds", "0.5,9", "--out", "日本.json",
        encoding="ascii",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "\\u65e5\\u672c.tsv" in result.lines[0]
    assert "100.0% ####################" in result.out
    assert result.out.isascii()
    assert json.loads((tmp_path / "日本.json").read_text())["rows"] == 2


def test_bytes_that_are_no_text(run, checkpoint: str) -> None:
    result = run("classify", checkpoint, "good", os.fsdecode(b"\xff\xfe"), "bad")
    assert result.code == 1
    assert "row 1: is not UTF-8" in result.lines[1]
    assert len(result.lines) == 3
    as_ascii = "日本 good".encode().decode("ascii", "surrogateescape")  # as a locale without these characters has it
    assert (
        run("classify", checkpoint, as_ascii, "--json").lines
        == run("classify", checkpoint, "日本 good", "--json").lines
    )


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\x1b[2J\x1b[31mred", "a\tb\x00\x07", "a\u2028b\x85c", "\u202eabc"])
def test_an_answer_is_one_harmless_line(run, checkpoint: str, text: str) -> None:
    result = run("classify", checkpoint, text.replace("\0", ""), "good [/b] [red]x :smile:")
    assert result.code == 0
    assert len(result.lines) == 2
    assert not any(character in result.out.replace("\n", "") for character in "\r\t\x00\x07\x1b\x85")
    assert "\u2028".encode() not in result.out.encode("latin-1")
    assert result.lines[1].endswith("good [/b] [red]x :smile:")


def test_closed_streams(run, checkpoint: str) -> None:
    result = run("classify", checkpoint, "good", closed=(1,))
    assert result.code == 1
    assert result.err == "error: standard output: Bad file descriptor\n"
    result = run("classify", "nowhere", "good", closed=(2,))
    assert (result.code, result.out, result.err) == (1, "", "")
    result = run("classify", checkpoint, "good", "bad", closed=(0, 2))
    assert (result.code, len(result.lines)) == (0, 2)
    assert run("classify", checkpoint, "good", closed=(0, 1, 2)).code == 1


@pytest.mark.parametrize("command", [["classify"], ["info"], ["demo"], ["--help"], ["--version"]])
def test_a_full_disk(run, checkpoint: str, command: list[str]) -> None:
    arguments = {"classify": ["good", "bad"], "info": [], "demo": []}.get(command[0])
    arguments = command if arguments is None else [*command, checkpoint, *arguments]
    result = run(*arguments, out="/dev/full")
    assert result.code == 1
    errors = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert errors[0].endswith("No space left on device")


@pytest.mark.parametrize(
    "command",
    [["classify", "{}", *["good"] * 20], ["classify", "{}", "--json"], ["info", "{}"], ["demo", "{}"], ["-h"]],
)
@pytest.mark.parametrize("stream", [1, 2])
def test_a_reader_that_has_gone(start, checkpoint: str, command: list[str], stream: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    source, lines = os.pipe()
    os.write(lines, b"good\n" * 100)
    os.close(lines)
    with open(os.devnull, "r+b") as nowhere:
        ends = {1: nowhere.fileno(), 2: nowhere.fileno()} | {stream: writer}
        arguments = [part.format(checkpoint) for part in command]
        code = start(*arguments, stdin=source, stdout=ends[1], stderr=ends[2]).wait()
    os.close(writer)
    os.close(source)
    assert code == (1 if stream == 1 else 0)


def test_head_ends_an_endless_input(start, checkpoint: str) -> None:
    reader, writer = os.pipe()
    yes = subprocess.Popen(["yes", "a good film"], stdout=subprocess.PIPE)
    assert yes.stdout is not None
    with open(os.devnull, "wb") as nowhere:
        process = start("classify", checkpoint, stdin=yes.stdout.fileno(), stdout=writer, stderr=nowhere.fileno())
    os.close(writer)
    yes.stdout.close()
    assert read_line(reader).endswith("a good film\n")
    os.close(reader)
    assert process.wait() == 1
    assert yes.wait(SECONDS) == -signal.SIGPIPE


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_slow_pipe_is_answered_line_by_line(start, checkpoint: str, json_lines: bool) -> None:
    source, lines = os.pipe()
    answers, writer = os.pipe()
    options = ["--json"] if json_lines else []
    with open(os.devnull, "wb") as nowhere:
        process = start("classify", checkpoint, *options, stdin=source, stdout=writer, stderr=nowhere.fileno())
    os.close(source)
    os.close(writer)
    for _ in range(2):
        for text in ("a good film", "a bad film"):
            os.write(lines, text.encode() + b"\n")
            answer = read_line(answers)  # no more was written, and the pipe is still open
            assert ('"label"' if json_lines else text) in answer
        os.write(lines, b"good\nbad\nslow\n")
        assert len([read_line(answers) for _ in range(3)]) == 3
    os.close(lines)
    assert process.wait() == 0
    os.close(answers)


def test_a_terminal_is_answered_line_by_line_until_ctrl_c(start, checkpoint: str) -> None:
    terminal, ours = os.openpty()
    process = start("classify", checkpoint, stdin=ours, stdout=ours, stderr=ours, terminal=True)
    os.close(ours)
    for text in ("a good film", "a bad film"):
        os.write(terminal, text.encode() + b"\n")
        assert read_line(terminal).strip() == text  # the terminal's echo
        assert read_line(terminal).rstrip().endswith(f"  {text}")
    os.write(terminal, b"\x03")
    assert process.wait() == 130
    rest = b""
    with contextlib.suppress(OSError):  # the other end is closed
        rest = os.read(terminal, 1000)
    assert b"Traceback" not in rest
    os.close(terminal)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals(start, checkpoint: str, number: signal.Signals, code: int, tmp_path: Path) -> None:
    source, lines = os.pipe()
    answers, writer = os.pipe()
    with open(tmp_path / "err", "wb") as err:
        process = start("classify", checkpoint, stdin=source, stdout=writer, stderr=err.fileno())
    os.close(writer)
    os.write(lines, b"good\n")
    read_line(answers)
    os.kill(process.pid, number)
    assert process.wait() == code
    assert (tmp_path / "err").read_bytes() == b""
    for end in (source, lines, answers):
        os.close(end)


def test_what_opening_a_pipe_raises_is_one_line(start, checkpoint: str, tmp_path: Path) -> None:
    source, lines = os.pipe()
    with open(tmp_path / "err", "wb") as err, open(os.devnull, "wb") as nowhere:
        arguments = ["classify", checkpoint, "--format", "xml"]
        process = start(*arguments, stdin=source, stdout=nowhere.fileno(), stderr=err.fileno())
    assert process.wait() == 2
    assert (tmp_path / "err").read_text().startswith("error: ")
    assert (tmp_path / "err").read_text().count("\n") == 1
    os.close(source)
    os.close(lines)


def test_a_named_pipe_as_file(start, checkpoint: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answers, writer = os.pipe()
    with open(os.devnull, "r+b") as nowhere:
        process = start(
            "classify", checkpoint, "--file", str(pipe), stdin=nowhere.fileno(), stdout=writer, stderr=nowhere.fileno()
        )
    os.close(writer)
    with open(pipe, "wb", buffering=0) as lines:
        lines.write(b"a good film\n")
        assert read_line(answers).endswith("a good film\n")
    assert process.wait() == 0
    os.close(answers)


def test_as_a_user_starts_it(checkpoint: str) -> None:
    command = [sys.executable, "-P", "-m", "pfengine"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pfengine {pfengine.__version__}\n"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUNBUFFERED": ""}
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*command, "classify", checkpoint],
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(writer)
    assert process.stdin is not None
    process.stdin.write(f"{TEXT}\n".encode())
    process.stdin.flush()
    assert read_line(reader, "cp1252").endswith("\\u65e5\\u672c good café\n")
    os.close(reader)
    _, err = process.communicate(b"good\n" * 20_000)  # more than any buffer holds
    assert (process.returncode, err) == (1, b"")
