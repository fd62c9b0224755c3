"""The command line, as a user meets it."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mobilenext.config import TrainConfig, is_text
from mobilenext.config.help import command_help
from mobilenext.errors import InputError
from mobilenext.main import CONFIG_DIR, _spelled, flags_last, positional_as_override
from tests.commands import REPO, command, environment
from tests.composed import MADE_UP, SCHEMAS, TINY, composed, composed_untyped
from tests.conftest import in_terminal

QUICK = (*TINY, *MADE_UP, "data.source.train_images=144")
"""Three steps an epoch."""


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["widht=0.5"], ["error: widht=0.5: there is no key widht; did you mean width? --help"]),
        (["data.rooot=/x"], ["did you mean root?"]),
        (["model.network.dropuot=0"], ["did you mean dropout?"]),
        (["model.network.depth_mult=1"], ["is added with +model.network.depth_mult=1"]),
        (["lr=0.1"], ["did you mean optimizer.lr?"]),
        (["batch_size=32"], ["did you mean data.global_batch_size?"]),
        (["workers=4"], ["did you mean data.workers?"]),
        (["resume=last.pt"], ["the same command once more", "init_from=FILE"]),
        (["pretrained=true"], ["init_from=FILE", "+model.network.pretrained=true"]),
        (["--epochs", "3"], ["error: argument '--epochs': expected key=value", "epochs=3"]),
        (["--batch-size=3"], ["expected key=value, for instance batch_size=3"]),
        (["epochs", "=", "3"], ["expected no spaces around it: epochs=3"]),
        (["width=0,35"], ["expected a decimal point, width=0.35"]),
        (["-m", "width=0,35"], ["expected a decimal point, width=0.35"]),
        (["model=resnet"], ["error: model=resnet: there is no such choice; choices: darts, effi"]),
        (["model=mobilenxt"], ["did you mean model=mobilenext or model=mobilenetv2?"]),
        (["modle=mobilenext"], ["there is no key modle; did you mean model?"]),
        (["data=null"], ["error: data=null: expected the name of a choice"]),
        (["=3"], ["error: argument '=3': expected key=value"]),
        (["epochs=1,2"], ["error: epochs=1,2: several values make a sweep, with -m"]),
        (["optimizer={a"], ["""can't be read as key=value""", """'optimizer="{a"'"""]),
        (["width=wide"], ["error: width=wide: expected a number, got 'wide'"]),
        (["epochs=1.5"], ["error: epochs=1.5: expected a whole number, got '1.5'"]),
        (["width=0"], ["error: width=0.0: expected a width multiplier in (0, 10]"]),
        (["width=35"], ["error: width=35.0: expected a width multiplier in (0, 10]"]),
        (["--help", "lr=3"], ["did you mean optimizer.lr?"]),
        (["-e", "3"], ["error: argument '-e': expected key=value; --help lists the keys"]),
        (["-lr=0.1"], ["error: argument '-lr=0.1': expected key=value"]),
        (["--cfg", "epochs=3"], ["error: --cfg: expected one of job, hydra, all behind it"]),
        (["epochs=3", "--config-dir"], ["error: --config-dir: expected its value behind it"]),
        (["width=1", "-m", "epochs=1", "--cfg", "job"], ["--cfg job shows the config of one run"]),
        (
            ["model=ablation/kernel5"],
            [
                "error: model=ablation/kernel5: there is no such choice; did you mean "
                "model=ablation/kernel_5 or model=ablation/kernel_7",
                "choices: ablation/activation",
            ],
        ),
        (["model=kernel_5"], ["did you mean model=ablation/kernel_5?", "ablation/..."]),
        (["model=ablation"], ["there is no such choice; choices: ablation/activation_all"]),
        (["model/ablation=kernel_5"], ["did you mean model=ablation/kernel_5?"]),
        (["detector=ssdlite_authors"], ["this command has no group detector; --help lists"]),
        *(
            (
                [given],
                [
                    "error: model.name has no value: add model.name=... to the command, for "
                    "instance model.name=mobilenetv3_small_100"
                ],
            )
            for given in ("model=timm", "model=torchvision")
        ),
        (["model=timm", "--help"], ["error: model.name has no value"]),
        (
            ["checkpoint=runs/x"],
            [
                "checkpoint is a group of keys: give checkpoint.every_steps, ",
                "goes on by itself, with the same command",
                "init_from=runs/x",
            ],
        ),
        (["model.network=x"], ["model.network is a group of keys: give model.network._target_"]),
        (["strides=2"], ["error: strides=2: expected a list"]),
        (["strides=[a]"], ["error: strides=[a]: expected a whole number, got 'a'"]),
        (["epochs=null"], ["error: epochs=null: expected a value"]),
        (["identity=abc"], ["error: identity=abc: expected a number or a fraction"]),
        (
            ["+model.network.dropout=0.1"],
            ["+model.network.dropout=0.1: model.network.dropout is there already: leave out the +"],
        ),
        (["+model=timm"], ["error: +model=timm: model is there already: leave out the +"]),
        (
            ["+model=mobilenext"],
            [
                "error: +model=mobilenext: a choice of model is made already",
                "give model=... once, without +",
            ],
        ),
        (["name=${foo.bar}"], ["error: name: ${foo.bar} names no key; --help lists them"]),
        (["~model.network.x"], ["error: ~model.network.x: there is no key model.network.x"]),
        (["model.network.kernel=5"], ["did you mean +model.network.kernel_size?"]),
        (["freeze_backbone=true"], ["error: freeze_backbone=true: expected false, or"]),
        (["optimizer.lr=null"], ["error: optimizer.lr=null: expected a number"]),
        (
            ["data=imagefolder", "data.root=nowhere"],
            ["error: data.root=nowhere: expected a folder"],
        ),
    ],
)
def test_one_clear_error_and_nothing_written(
    run,
    tmp_path: Path,
    arguments: list[str],
    messages: list[str],
) -> None:
    done = run("train.py", *arguments, ok=False)
    assert done.returncode == 1
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr
    for advice in ("To append to your config", "HYDRA_FULL_ERROR", "hydra.cc", "full_key"):
        assert advice not in done.stderr, "Hydra's own, which is wrong here"
    assert len(done.stderr.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_what_a_target_refuses_is_not_proposed(run) -> None:
    cooldown = ("schedule=constant", "schedule.cooldown_epochs=2")
    said = run("train.py", *cooldown, ok=False).stderr
    assert "it is a key of schedule=cosine, cosine_darts," in said
    assert "keys in schedule: _target_, _partial_, epochs, warmup_epochs" in said
    assert "+schedule" not in said
    assert "is added with" not in run("train.py", "hydra.launcher.x=3", ok=False).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["width=0.5", "--cfg", "job", "epochs=3"],
        ["width=0.5", "--cfg=job", "--resolve", "epochs=3"],
        ["--cfg", "job", "--resolve", "width=0.5", "epochs=3"],
        ["width=0.5", "--config-dir", ".", "epochs=3", "-c", "job"],
        ["--", "width=0.5", "epochs=3", "--cfg", "job"],
    ],
)
def test_flags_may_stand_anywhere(run, arguments: list[str]) -> None:
    said = OmegaConf.create(run("train.py", *arguments).stdout)
    assert (said.width, said.epochs) == (0.5, 3)


def test_flags_go_behind_overrides_with_their_values() -> None:
    for typed, read in (
        ("a=1 -m b=2,3", "a=1 b=2,3 -m"),
        ("a=1 --multirun b=2,3 -cd x=y c=4", "a=1 b=2,3 c=4 --multirun -cd x=y"),
        ("a=1 --info b=2 --info all", "a=1 b=2 --info --info all"),
        ("~a --cfg job +b=1 -p model ++c=-1", "~a +b=1 ++c=-1 --cfg job -p model"),
    ):
        assert flags_last(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("job", "form"),
    [
        ("evaluate", "evaluate.py runs/NAME/HASH"),
        ("export", "export.py runs/NAME/HASH output=OUTPUT"),
        ("predict", "predict.py runs/NAME/HASH IMAGES"),
        ("quantize", "quantize.py runs/NAME/HASH output=OUTPUT"),
        ("compare_curve", "compare_curve.py runs/NAME/HASH"),
    ],
)
def test_a_job_without_its_run_names_its_usual_form(run, job: str, form: str) -> None:
    said = run(f"scripts/{job}.py", ok=False).stderr
    assert "has no value: add " in said
    assert said.endswith(f"scripts/{form}\n")


def test_a_config_with_the_name_of_one_of_ours_is_refused(run, tmp_path: Path) -> None:
    """Hydra would take ours, and nobody would see it."""
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    ours = CONFIG_DIR / "experiment" / "imagenette_short.yaml"
    (mine / ours.name).write_bytes(ours.read_bytes())
    arguments = ("--config-dir=mine", "experiment=imagenette_short")
    run("train.py", *arguments, "--cfg", "job")  # a copy says the same
    (mine / ours.name).write_text("# @package _global_\nepochs: 3\n")
    said = run("train.py", *arguments, ok=False).stderr
    assert said.startswith("error: mine/experiment/imagenette_short.yaml: expected a name of its")
    assert said.endswith("rename it, for instance imagenette_short_mine.yaml\n")
    (mine / ours.name).rename(mine / "imagenette_short_mine.yaml")
    said = run("train.py", "--config-dir", "mine", "experiment=imagenette_short_mine", "--cfg",
               "job").stdout  # fmt: skip
    assert "epochs: 3\n" in said


def test_hydras_errors_in_full_where_they_are_asked_for(run) -> None:
    done = run("train.py", "lr=0.1", ok=False, env={"HYDRA_FULL_ERROR": "1"})
    assert "Traceback" in done.stderr
    assert "ConfigCompositionException" in done.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_help_says_what_each_key_means(run, tmp_path: Path, columns: int) -> None:
    (tmp_path / "mine=1").mkdir()  # a folder with configs, and no key
    given = ("model=mobilenetv2", "epochs=7", "--config-dir", "mine=1")
    said = run("train.py", "--help", *given, env={"COLUMNS": str(columns)}).stdout
    command, *lines = said.splitlines()  # the command has a path to Python: as long as it is
    assert command.startswith("usage: ")
    assert max(map(len, lines)) <= columns
    assert "mobilenetv2*" in said
    keys = said.split("Keys, with this command's values:")[1]
    for lines in (
        "\nepochs=7\n    Passes over the training split, cool-down included.\n",
        "\ndata.mean=[0.31,0.31,0.31]\n    Channel means in [0, 1], RGB.\n",
        "\nmodel.network._target_=mobilenext.models.MobileNetV2\n",
        "\ninit_from=null\n",
    ):
        assert lines in keys, keys


def test_usage_takes_two_lines_where_python_has_a_long_path() -> None:
    @dataclasses.dataclass
    class Config:
        seed: int = 0
        """What is drawn."""

    composed = OmegaConf.create({"seed": 0, "hydra": {"runtime": {"choices": {}}}})
    for path, lines in ("python", 1), (f"/{'deep/' * 11}python", 2):
        said = command_help(f"{path} train.py", "About.", Config, composed, [], 80)
        usage, _, _ = said.partition("\n\n")
        assert len(usage.splitlines()) == lines
        assert max(map(len, usage.splitlines())) <= 80
        assert usage.split() == f"usage: {path} train.py [key=value ...] [group=choice ...]".split()


def test_help_of_every_job(run) -> None:
    for job in SCHEMAS:
        said = run("train.py" if job == "train" else f"scripts/{job}.py", "-h").stdout
        assert said.startswith("usage: "), job
        assert "Hydra's own." in said


def test_what_needs_no_torch_is_answered_without_it(run, tmp_path: Path) -> None:
    """A typo, --help, and a run that is finished: importing torch would take seconds."""
    run("train.py", *QUICK)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "torch.py").write_text("raise SystemExit('torch was loaded')")
    without = {**environment(), "PYTHONPATH": str(tmp_path / "none")}

    def answer(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = command("train.py", *arguments)
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=without)

    assert answer(*QUICK).stdout.startswith("already finished: top-1 ")
    assert answer("--help").stdout.startswith("usage: ")
    assert answer("lr=0.1").stderr.startswith("error: lr=0.1: there is no key lr")
    assert answer(*QUICK, "seed=1").stderr == "torch was loaded\n"


def told(*arguments: str, job: str = "train") -> Any:
    """The config of a command line, not yet checked."""
    schema = SCHEMAS[job]
    overrides = _spelled(positional_as_override(list(arguments), schema), schema)
    return composed_untyped(*overrides, job=job)


@pytest.mark.parametrize(
    "text",
    ["2024_10_01", "1e3", "0x10", "1.10", "007", "true", "nan", "runs/a=b", "/data/my photos",
     "/data/photos (2)", "a,b", "C:/x", "~/x", "it's", 'a "b"', "[x", "{x}", "plain", "-1"],
)  # fmt: skip
def test_text_stays_as_it_was_typed(text: str) -> None:
    config = told(f"output_dir={text}", f"data.root={text}", f"name={text}")
    assert (config.output_dir, config.data.root, config.name) == (text, text, text)
    config = told("checkpoint=x", f"++data.root={text}", job="evaluate")
    assert config.data.root == text


def test_what_is_no_text_is_read_as_before() -> None:
    config = told("epochs=1_0", "width=1e-1", "data.root=null", "name='2024_10_01'")
    assert (config.epochs, config.width, config.data.root) == (10, 0.1, None)
    assert config.name == "2024_10_01"
    assert told("name=${data.name}-x").name == "digits-x"


def test_values_of_a_sweep_stay_several() -> None:
    assert _spelled(["-m", "name=1_0,b,2_0"], TrainConfig) == ["-m", 'name="1_0",b,"2_0"']
    assert _spelled(["experiment=x", "data.root=a,b"], TrainConfig) == [
        "experiment=x",
        "data.root=a,b",
    ]
    assert _spelled(["-m", "width=0.5,1"], TrainConfig) == ["-m", "width=0.5,1"]


def test_lists_of_paths_stay_as_they_were_typed() -> None:
    assert told("runs=[2024_10_01,b]", job="tables").runs == ["2024_10_01", "b"]
    assert is_text(SCHEMAS["tables"], "update")
    assert not is_text(TrainConfig, "data")
    assert not is_text(TrainConfig, "optimizer.lr")
    assert not is_text(TrainConfig, "data.nothing")


def test_an_argument_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1,b").mkdir()
    assert told("lr=0.1,b", "c", job="tables").runs == ["lr=0.1,b", "c"]
    assert told("lr=0.1,b", job="evaluate").checkpoint == "lr=0.1,b"
    given = positional_as_override(["--config-dir", "x", "d", "output=e"], SCHEMAS["tables"])
    assert given == ["--config-dir", "x", 'runs=["d"]', "output=e"]


def test_one_argument_is_the_checkpoint() -> None:
    for job in ("evaluate", "export"):
        assert told("runs/a (2)/x,y", job=job).checkpoint == "runs/a (2)/x,y"
    for given, message in (
        (["my", "run/best.pt"], r"expected one path, got 2: my run/best.pt; quote .*'my run/best"),
        (["checkpoint=/my", "run"], r"argument 'run': .*quote .*'checkpoint=/my run'"),
        (["a.pt", "checkpoint=b.pt"], "argument 'a.pt': expected key=value"),
    ):
        with pytest.raises(InputError, match=message):
            positional_as_override(given, SCHEMAS["evaluate"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.root=/my", "photos", "width=1"],
         r"argument 'photos': expected key=value.*quote .*'data\.root=/my photos'"),
        (["0.5"], r"for instance width=0\.5"),
        (["mobilenext"], "see --help"),
    ],
)  # fmt: skip
def test_arguments_without_a_key(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        positional_as_override(arguments, TrainConfig)


def test_flags_keep_their_values() -> None:
    for given in (["--config-name", "train"], ["-cd", "mine"], ["--cfg", "job"]):
        assert positional_as_override(given, TrainConfig) == given


def test_the_home_folder_is_meant_in_all_paths(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("train.py", *QUICK, "output_dir=~/1_0", env={"HOME": str(tmp_path)})
    (result,) = (tmp_path / "1_0").rglob("result.json")
    assert f"run folder: {tmp_path}/1_0/" in done.stdout
    best = f"checkpoint=~/{result.parent.relative_to(tmp_path)}/best.pt"
    for job, more in (("evaluate", ()), ("export", ("output=~/out put",))):
        run(f"scripts/{job}.py", best, *more, env={"HOME": str(tmp_path)})
    assert (tmp_path / "out put" / "README.md").is_file()
    assert not (tmp_path / "~").exists()
    said = run("scripts/evaluate.py", "1_0/latest").stdout  # its folder names it as before
    assert said.startswith("already finished") or "top-1" in said
    (evaluated,) = (tmp_path / "runs" / "evaluate").rglob("result.json")
    assert json.loads(evaluated.read_text())["checkpoint"].endswith(f"{result.parent.name}/best.pt")


def test_latest_is_the_run_that_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    for age, name in enumerate(("a/1", "b/2", "a/3")):
        (runs / name).mkdir(parents=True)
        (runs / name / "sessions.jsonl").touch()
        os.utime(runs / name / "sessions.jsonl", (10 - age, 10 - age))
    for given, meant in (
        ("latest", "a/1"), ("b/latest", "b/2"), ("a/latest/best.pt", "a/1/best.pt"),
        ("a/3/best.pt", "a/3/best.pt"),
    ):  # fmt: skip
        config = composed(f"checkpoint={runs / given}", job="evaluate")
        assert config.checkpoint == str(runs / meant)
    tables = composed(f"runs=[{runs}/b/latest,{runs}]", job="tables")
    assert tables.runs == [str(runs / "b/2"), str(runs)]
    with pytest.raises(InputError, match=r"expected a run folder below .*none, found none"):
        composed(f"checkpoint={runs}/none/latest", job="evaluate")
    (runs / "latest").mkdir()
    there = composed(f"checkpoint={runs}/latest", job="evaluate").checkpoint
    assert there == f"{runs}/latest", "what has that name is meant"
    with pytest.raises(InputError, match=r"init_from=.*: expected a run that stays the same"):
        composed(f"init_from={runs}/b/latest")
    (runs / "latest" / "w.pt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    given = composed('init_from="~/runs/latest/w.pt"').init_from
    assert given == f"{runs}/latest/w.pt", "what has that name is meant, in the home folder too"


def test_names_that_are_no_text_and_terminals_that_know_little(
    run, tmp_path: Path, photo_folder: Path
) -> None:
    """A folder, images, a damaged image and an output whose names are not UTF-8."""
    root = tmp_path / os.fsdecode(b"b\xe4d")
    photo_folder.rename(root)
    for split in ("train", "val"):
        sound = root / split / "flower" / "0.jpg"
        sound.rename(sound.with_name(os.fsdecode(b"\xe4.jpg")))
        (root / split / "flower" / os.fsdecode(b"\xff.jpg")).write_bytes(b"nothing")
    ascii_only = {"env": {"PYTHONIOENCODING": "ascii"}}
    arguments = [*TINY, "data=imagefolder", f"data.root={root}", "data.global_batch_size=8",
                 "data.image_size=32", "epochs=1", "schedule=constant", "data.on_bad_image=skip",
                 "data.max_bad_share=0.2"]  # fmt: skip
    run("train.py", *arguments, **ascii_only)
    assert "already finished" in run("train.py", *arguments).stdout
    (run_folder,) = tmp_path.glob("runs/*/*")
    assert r"b\xe4d/val/flower/\xff.jpg" in (run_folder / "unreadable.txt").read_text()
    output = tmp_path / os.fsdecode(b"o\xe4t")
    best = f"checkpoint={run_folder / 'best.pt'}"
    run("scripts/evaluate.py", best)
    run("scripts/export.py", best, f"output={output}")
    assert (output / "README.md").read_text().startswith("---")
    assert "\\xb1" in run("scripts/tables.py", **ascii_only).stdout


def test_ranks_that_cannot_share_a_batch(run, tmp_path: Path) -> None:
    done = run("train.py", "data.global_batch_size=33", processes=2, ok=False)
    assert done.returncode == 1
    # Others may speak as well, if rank 0 takes seconds to end; then they say who they are.
    said = done.stderr.count("can't be shared evenly by 2 processes")
    assert said - done.stderr.count("error [rank 1]: data.global_batch_size=33 can't") == 1
    assert "for instance 32 or 34" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_under_torchrun_is_refused(run, tmp_path: Path) -> None:
    done = run("train.py", "-m", "width=0.35,0.5", processes=2, ok=False)
    assert "a sweep (-m) can't run under torchrun" in done.stderr
    works = "train.py -m hydra/launcher=torchrun hydra.launcher.processes=2 width=0.35,0.5"
    assert works in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_says_it_is_a_sweep_is_refused_too(run, tmp_path: Path) -> None:
    done = run("train.py", "experiment=identity_table", "data.root=x", processes=2, ok=False)
    assert "a sweep (-m) can't run under torchrun" in done.stderr
    assert "hydra.launcher.processes=2 experiment=identity_table data.root=x" in done.stderr
    assert done.returncode == 1
    assert not list(tmp_path.glob("runs/mobilenext*"))


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_sweep_runs_and_a_failing_job_does_not_stop_it(
    run, tmp_path: Path, launcher: str
) -> None:
    sweep = (
        "train.py",
        "-m",
        *QUICK,
        "identity=2,1/2",
        f"hydra/launcher={launcher}",
    )
    done = run(*sweep, ok=False)
    assert done.returncode == 1
    said = done.stderr if launcher == "basic" else done.stdout
    assert "error: identity=2.0: expected" in said
    assert "1 of the sweep's jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    (result,) = (tmp_path / "runs").glob("*/*/result.json")
    assert json.loads(result.read_text())["identity"] == 1 / 2
    again = run(*sweep, ok=False)
    word = "already finished" if launcher == "basic" else "finished earlier  top-1"
    # the launcher says so as it goes, and in the summary
    assert again.stdout.count(word) == (1 if launcher == "basic" else 2)
    assert (": running" in done.stdout) == (launcher == "torchrun")
    assert ": running" not in again.stdout


def test_plain_lines_where_there_is_no_terminal(run) -> None:
    done = run("train.py", *MADE_UP, "data.source.train_images=48", "width=0.35", "epochs=2",
               "data.image_size=32", "data.global_batch_size=24")  # fmt: skip
    lines = done.stdout.splitlines()
    assert "645,786 parameters" in lines[0]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    for word in ("train loss", "val top-1", "(best), loss", "lr ", "images/s", "data wait", "left"):
        assert word in epochs[0]
    (place,) = [line for line in lines if line.startswith("run folder: ")][1:]
    assert place.startswith("run folder: runs/mobilenext-0.35-synthetic/")
    (best,) = [line for line in lines if "evaluate.py checkpoint=" in line]
    assert best.endswith(f"checkpoint={place.removeprefix('run folder: ')}/best.pt")
    named = place.removeprefix("run folder: ")
    assert lines[-3].endswith(f"{REPO}/scripts/predict.py {named} PICTURES")
    assert lines[-2].endswith(f"{REPO}/scripts/export.py {named} output=exported")
    assert lines[-1].endswith(f"{REPO}/scripts/report.py runs")
    assert "note: top-1 is what guessing among 10 classes gives. After 4 steps" in done.stdout
    assert "\r" not in done.stdout


def test_a_progress_bar_where_there_is_one(tmp_path: Path) -> None:
    steps = ("data.source.train_images=672", "runtime.log_every=2")  # 14
    arguments = command("train.py", *QUICK, *steps)
    shown, _ = in_terminal(arguments, tmp_path, environment())
    bar = shown.split("\r")
    assert any("epoch 1/1" in state and "/14" in state for state in bar)
    assert any("train top-1" in state and "images/s" in state for state in bar)
    assert any("epoch 1/1 evaluation" in state and "1/1" in state for state in bar)


def test_a_damaged_image_on_another_rank_is_named(run, tmp_path: Path, photo_folder: Path) -> None:
    for file in (photo_folder / "train" / "temple").glob("*.jpg"):
        file.write_bytes(file.read_bytes()[:3000])
    arguments = [*TINY, "data=imagefolder", f"data.root={photo_folder}", "data.image_size=64",
                 "data.global_batch_size=2", "data.workers=0", "epochs=4",
                 "schedule=constant"]  # fmt: skip
    done = run("train.py", *arguments, processes=2, ok=False)
    assert done.returncode == 1
    assert "expected an image file, could not decode it" in done.stderr
    assert "error" in done.stderr


def test_bare_arguments_become_an_override_where_they_stood() -> None:
    typed = ["runs/latest", "data.decoder=pillow", "--cfg", "job"]
    found = positional_as_override(typed, SCHEMAS["evaluate"])
    assert found == ['checkpoint="runs/latest"', *typed[1:]]
    found = positional_as_override(["a", "paper=true", "b", "--cfg", "job"], SCHEMAS["tables"])
    assert found == ['runs=["a","b"]', "paper=true", "--cfg", "job"]


def test_a_run_and_then_its_pictures() -> None:
    """Of several fields that take bare arguments, each has one path, and the last one the rest."""
    for typed, read in (
        (["runs/latest", "a", "b"], ['checkpoint="runs/latest"', 'images=["a","b"]']),
        (["runs/latest", "shown=3", "a"], ['checkpoint="runs/latest"', 'images=["a"]', "shown=3"]),
        (["checkpoint=x", "a", "b"], ["checkpoint=x", 'images=["a","b"]']),
        (["++checkpoint=x", "a"], ["++checkpoint=x", 'images=["a"]']),
        (["images=[a]", "runs/latest"], ["images=[a]", 'checkpoint="runs/latest"']),
        (["runs/latest"], ['checkpoint="runs/latest"']),
    ):
        assert positional_as_override(typed, SCHEMAS["predict"]) == read
    with pytest.raises(InputError, match="checkpoint: expected one path, got 2: my run"):
        positional_as_override(["my", "run", "images=[a]"], SCHEMAS["predict"])
    with pytest.raises(InputError, match="argument 'run'"):
        positional_as_override(["checkpoint=my", "run", "images=[a]"], SCHEMAS["predict"])


def test_a_list_is_given_in_one_way() -> None:
    with pytest.raises(InputError, match="argument 'w'"):
        positional_as_override(["w", "runs=[w2]"], SCHEMAS["tables"])
