"""The command line as a user meets it: output, exit codes, one line on stderr and no traceback."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest
import torch

import pfengine
from pfengine import cli, cli_io, console
from pfengine.exits import CRITERIA
from pfengine.strict_json import dumps

TEXTS = ["a charming and often affecting journey", "unflinchingly bleak and desperate"]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> list:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pfengine", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return call


def test_classify_arguments(run) -> None:
    result = run("classify", "sst2", *TEXTS)
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("positive")
    assert lines[1].startswith("negative")
    assert all("layer" in line for line in lines)
    assert lines[0].endswith(TEXTS[0])


def test_classify_json_equals_python(run, sst2: pfengine.Engine) -> None:
    result = run("classify", "sst2", *TEXTS, "--json", "--speedup", "2")
    assert result.json == sst2.classify(TEXTS, speedup=2)


def test_a_module_of_the_users_is_imported(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_criteria.py").write_text(
        "from pfengine.exits import Entropy, register\n@register\nclass Mine(Entropy):\n    name = 'mine'\n"
    )
    (tmp_path / "my_clash.py").write_text((tmp_path / "my_criteria.py").read_text().replace("'mine'", "'entropy'"))
    try:
        result = run("--import", "my_criteria", "classify", "sst2", *TEXTS, "--json", "--criterion", "mine:0.3")
        assert result.json == run("classify", "sst2", *TEXTS, "--json", "--criterion", "entropy:0.3").json
    finally:
        CRITERIA.pop("mine", None)
    for module, message in [
        ("my_criteriae", "--import my_criteriae: ModuleNotFoundError: No module named 'my_criteriae'"),
        ("my_clash", "--import my_clash: ValueError: the criterion 'entropy' is pfengine.exits.criteria.Entropy"),
    ]:
        result = run("--import", module, "info", "sst2")
        assert result.code == 2
        assert message in result.err


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize(
    ("kind", "content", "rows"),
    [
        ("text", "\n".join(TEXTS) + "\n", TEXTS),
        ("tsv", f"{TEXTS[0]}\tand its pair\n{TEXTS[1]}\n", [(TEXTS[0], "and its pair"), TEXTS[1]]),
        ("tsv", f"label\tsentence\n1\t{TEXTS[0]}\n", [TEXTS[0]]),
        (
            "jsonl",
            json.dumps({"text": TEXTS[0], "id": 7}) + "\n" + json.dumps(TEXTS[1]) + '\n{"input_ids": [0, 5, 2]}\n',
            [*TEXTS, {"input_ids": [0, 5, 2]}],
        ),
    ],
)
def test_classify_formats(
    run, sst2: pfengine.Engine, tmp_path: Path, from_file: bool, kind: str, content: str, rows: list
) -> None:
    if from_file:
        file = tmp_path / f"rows.{kind}"
        file.write_text(content)
        result = run("classify", "sst2", "--json", "--file", str(file))
    else:
        result = run("classify", "sst2", "--json", "--format", kind, stdin=content)
    assert result.code == 0, result.err
    assert result.json == sst2.classify(rows)


@pytest.mark.parametrize("stdin", [["--file", "-"], ["-"], []])
def test_classify_standard_input(run, sst2: pfengine.Engine, stdin: list[str]) -> None:
    result = run("classify", "sst2", *stdin, "--json", "--format", "csv", stdin=f"label,sentence\n1,{TEXTS[0]}\n")
    assert result.json == sst2.classify(TEXTS[:1])


def test_classify_columns(run, sst2: pfengine.Engine, tmp_path: Path) -> None:
    file = tmp_path / "rows.CSV.gz"
    file.write_bytes(gzip.compress(f"id,body,more,text\n1,{TEXTS[0]},pair,no\n2,b\xe9,x,no\n3,{TEXTS[1]},pair,no\n"
                                   .encode("latin-1")))  # fmt: skip
    options = ["--text-column", "body", "--pair-column", "more", "--label-column", "id"]
    result = run("classify", "sst2", "--json", "--file", str(file), *options)
    first, bad, last = result.json
    assert [first, last] == sst2.classify([(text, "pair") for text in TEXTS])
    assert bad["error"].startswith("is not valid UTF-8: byte 0xe9 at position 3")
    assert (result.code, result.err) == (1, "error: 1 of 3 rows could not be classified\n")


def test_classify_bad_rows_do_not_lose_the_others(run) -> None:
    content = json.dumps({"text": TEXTS[0]}) + "\nnot json\n" + json.dumps({"text": 3}) + "\n" + json.dumps(TEXTS[1])
    result = run("classify", "sst2", "--json", "--format", "jsonl", stdin=content)
    assert result.code == 1
    assert [("error" in answer) for answer in result.json] == [False, True, True, False]
    assert [answer["row"] for answer in result.json if "error" in answer] == [1, 2]
    assert "2 of 4 rows" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_classify_top_k(run) -> None:
    answers = run("classify", "sst2", TEXTS[0], "--json", "--top-k", "0").json[0]
    assert [answer["label"] for answer in answers] == ["positive", "negative"]


def test_classify_nothing(run) -> None:
    result = run("classify", "sst2", "--json", stdin="")
    assert (result.code, result.out) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["classify", "sst2", "x", "--threshold", "nan"], 2, "nan"),
        (["classify", "sst2", "x", "--speedup", "99"], 2, "calibration table"),
        (["classify", "sst2", "x", "--speedup", "2", "--threshold", "0.1"], 2, "not both"),
        (["classify", "sst2", "x", "--criterion", "mood:1"], 2, "entropy"),
        (["classify", "sst2", "x", "--precision", "fp16"], 2, "fp16"),
        (["classify", "sst2", "x", "--top-k", "-1"], 2, "top-k"),
        (["classify", "sst2", "--file", "nowhere.txt"], 2, "nowhere.txt"),
        (["classify", "sst2", "--format", "xml"], 2, "xml"),
        (["classify", "sst2", "--file", "."], 2, "is a directory"),
        (["classify", "sst2", "--file", "rows.tsv", "--text-column", "body"], 2, "no column 'body'; it has sentence"),
        (["classify", "sst2", "x", "--text-column", "body"], 2, "not both"),
        (["train", "nowhere", "rows.tsv", "out", "--labels", "one"], 2, "or a file with one name per line"),
        (["train", "nowhere", "rows.tsv", "out", "--seed", "-1"], 2, "seed is -1"),
        (["train", "nowhere", "rows.tsv", "out", "--hold-out", "0"], 2, "hold_out is 0"),
        (["train", "nowhere", "rows.tsv", "out"], 2, "all 1 rows have the label '1'"),
        (["attach", "nowhere", "rows.tsv", "out", "--seed", "-1"], 2, "seed is -1"),
        (["attach", "nowhere", "rows.tsv", "out", "--epochs", "nan"], 2, "epochs is nan"),
        (["classify", "nowhere", "x"], 1, "nowhere"),
        (["classify"], 2, "checkpoint"),
        (["classify", "sst2", "x", "--treshold", "1"], 2, "--treshold"),
        (["convert", "nowhere", "out"], 1, "nowhere"),
        (["convert", "nowhere", "out", "--system", "other"], 2, "past-future"),
        (["evaluate", "sst2", "nowhere.tsv"], 2, "nowhere.tsv"),
        (["evaluate", "sst2", "rows.tsv", "--thresholds", "a,b"], 2, "--thresholds"),
        (["train", "nowhere", "nowhere", "out"], 2, "nowhere"),
        (["info", "nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_use(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, code: int, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.tsv").write_text("sentence\tlabel\na film\t1\n")
    result = run(*arguments)
    assert result.code == code, result.err
    assert message.lower() in result.err.lower()
    assert not Path("out").exists()


def test_label_names_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(b"\xef\xbb\xbfnot, really\r\n so so \r\nyes\r\n\r\n")
    assert cli_io.read_names(str(file)) == ("not, really", "so so", "yes")
    assert cli_io.read_names("no, so so,yes") == ("no", "so so", "yes")


@pytest.mark.parametrize("command", ["classify", "train", "attach", "calibrate", "evaluate"])
def test_every_command_that_reads_rows_is_told_their_columns(run, command: str) -> None:
    shown = run(command, "--help").out
    assert all(f"--{option}" in shown for option in ("format", "text-column", "pair-column", "label-column"))


@pytest.mark.parametrize(
    "command", ["classify", "tag", "convert", "train", "attach", "calibrate", "evaluate", "info", "demo"]
)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_an_example(run, command: str, option: str) -> None:
    result = run(command, option)
    assert (result.code, result.err) == (0, "")
    assert f"Example: pfengine {command}" in " ".join(result.out.split())


def test_version_and_help(run) -> None:
    assert run("--version").out == f"pfengine {pfengine.__version__}\n"
    assert "calibrate" in run("-h").out
    nothing = run()
    assert (nothing.code, nothing.out) == (2, "")
    assert "calibrate" in nothing.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "", "x"], ["classify", "sst2", "x", "--criterion", ""], ["classify", "sst2", "x", "--precision="],
        ["convert", "", "out"], ["convert", "source", ""], ["train", "sst2", "rows.tsv", ""],
        ["train", "sst2", "rows.tsv", "out", "--labels", ""], ["attach", "model", "", "out"],
        ["calibrate", "sst2", "", "--out", "out"], ["calibrate", "sst2", "rows.tsv", "--out", ""],
        ["evaluate", "sst2", ""], ["evaluate", "sst2", "dev.tsv", "--compare", ""],
        ["evaluate", "sst2", "dev.tsv", "--report", ""], ["info", ""], ["demo", ""],
    ],
)  # fmt: skip
def test_an_empty_argument_is_not_the_current_directory(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dev.tsv").write_text("sentence\tlabel\na film\t1\n")
    Path("rows.tsv").write_text("sentence\tlabel\na film\t1\n")
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert "is empty" in result.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dev.tsv", "rows.tsv"]


def test_a_text_may_begin_with_a_dash_and_a_dash_is_standard_input(run) -> None:
    assert run("classify", "sst2", "--", "-1 of 10").out.endswith("  -1 of 10\n")
    assert run("classify", "sst2", "-", stdin="a good film\n").out.endswith("  a good film\n")
    result = run("classify", "sst2", "-1 of 10")
    assert result.code == 2
    assert "goes after --" in result.err
    assert result.err.count("\n") == 1
    assert "goes after" not in run("classify", "sst2", "x", "--treshold", "1").err


def test_reports_are_tried_before_the_work(run, tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    file.write_text("sentence\tlabel\na film\t1\n")
    for options in (["--out", tmp_path], ["--out", file / "x.json"], ["--report", file], ["--report", file / "x"]):
        result = run("evaluate", "sst2", file, *options)
        assert result.code == 2
        assert result.err.startswith(f"error: {options[0]} {options[1]} ")
        assert result.err.count("\n") == 1


def test_a_report_is_shown_though_its_file_cannot_be_written(run, tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    file.write_text("sentence\tlabel\na film\t1\n")
    result = run("evaluate", "sst2", file, "--repeats", "1", "--thresholds", "0.1", "--json", "--out", "/dev/full")
    assert (result.code, result.err.splitlines()[-1]) == (1, "error: /dev/full: No space left on device")
    assert result.json[0]["rows"] == 1


def test_memory_that_is_not_there_and_faults_of_ours(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(error: BaseException) -> None:
        def failing(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(cli, "load", failing)

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()):
        load(error)
        result = run("info", "sst2")
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert "not enough memory" in result.err
    load(OSError(28, "No space left on device", "a file"))
    assert run("info", "sst2").err == "error: a file: No space left on device\n"
    load(KeyboardInterrupt())
    assert run("info", "sst2").code == 130
    with pytest.raises(SystemExit) as stop:
        console.run(lambda: cli.load())  # Ctrl-C while torch is imported
    assert stop.value.code == 130
    load(RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="of ours"):
        run("info", "sst2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_numbers_that_json_lacks(value: float) -> None:
    text = dumps({"score": value, "list": [1.5, value], "tuple": (value, "x")}, indent=2)
    assert json.loads(text, parse_constant=pytest.fail) == {"score": None, "list": [1.5, None], "tuple": [None, "x"]}


def test_info(run) -> None:
    result = run("info", "sst2", "--json")
    facts = result.json[0]
    assert (facts["system"], facts["family"], facts["layers"]) == ("pfengine", "bert", 12)
    assert facts["labels"] == ["negative", "positive"]
    assert facts["storage"] == "int8-rows"
    assert facts["megabytes"] < 45
    assert "calibration:" in run("info", "sst2").out


def test_evaluate(run, tmp_path: Path) -> None:
    file, report = tmp_path / "dev.tsv", tmp_path / "report.json"
    file.write_text(f"sentence\tlabel\n{TEXTS[0]}\t1\n{TEXTS[1]}\t0\n{TEXTS[1]}\t1\n")
    options = ["--speedups", "2", "--thresholds", "0.05", "--repeats", "1"]
    folder = tmp_path / "folder"
    result = run("evaluate", "sst2", str(file), *options, "--json", "--out", str(report), "--report", str(folder))
    assert {path.name for path in folder.iterdir()} == {
        "report.json", "report.md", "curve.png", "curve.svg", "exits.png", "exits.svg", "layers.png", "layers.svg",
    }  # fmt: skip
    assert result.code == 0, result.err
    written = json.loads(report.read_text())
    assert written == result.json[0]
    assert [setting["name"] for setting in written["settings"]] == ["full depth", "threshold 0.05", "speedup 2"]
    assert written["settings"][0]["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert written["settings"][0]["exit_layers"] == {"12": 3}
    assert all(setting["wall_clock_speedup"] > 0 for setting in written["settings"])
    table = run("evaluate", "sst2", str(file), *options)
    assert "wall-clock" in table.out
    assert "exit layer" in table.out


def test_demo(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfengine.demo.REPEATS", 3)
    result = run("demo")
    assert result.code == 0
    for word in ("label", "score", "exit layer", "layer speed-up", "wall-clock speed-up"):
        assert word in " ".join(result.out.split())
    facts = run("demo", "--json").json[0]
    assert len(facts["answers"]) >= 5
    assert facts["layer_speedup"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [("classify", "sst2", "a text"), ("evaluate", "sst2", "rows.tsv")])
def test_a_gpu_that_is_not_there(run, command: tuple[str, ...]) -> None:
    outcome = run(*command, "--device", "cuda")
    assert outcome.code == 2
    assert outcome.err == "error: device is 'cuda', but torch sees no GPU; use device='cpu'\n"
