"""What a run can do without, and what it can't: TensorBoard, samples, lists, metrics."""

import json
import os
import signal
import subprocess
import sys

import pytest
import together
from conftest import REPOSITORY, train
from test_survival import at_step, fill_up, steps_in

from mirg_jax.data.examples import Rejected
from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.errors import DataError, SaveError
from mirg_jax.files import lines
from mirg_jax.runs import metrics, run_folder


def test_training_goes_on_when_tensorboards_file_is_full(
    steady_recipe, tmp_path, monkeypatch, capsys
):
    """tensorboardX's own writer waits for its dead thread for ever, and no signal ends it."""
    config = steady_recipe("sft", **{"checkpoint.every": 0})
    train(steady_recipe("sft", num_steps=1), tmp_path)  # the first step is always saved
    add, undo = metrics.Board.add, []

    def much(self, step, scalars):
        add(
            self, step, {f"{name}/{i}": value for name, value in scalars.items() for i in range(99)}
        )

    def lift_and_stop():
        undo.pop()()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Board, "add", much)
    full = at_step(2, lambda: undo.append(fill_up(9_000)), monkeypatch)
    try:
        with full, at_step(3, lift_and_stop, monkeypatch), pytest.raises(SystemExit) as stopped:
            train(config, tmp_path)
    finally:
        for lift in undo:
            lift()
    assert stopped.value.code == 143 and steps_in(tmp_path) == ["1", "3"]
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path}/tensorboard: cannot be written (File too large)") == 1
    monkeypatch.undo()
    train(config, tmp_path)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4]
    assert steps_in(tmp_path) == ["3", "4"]  # every=0: else only at the end


@pytest.mark.slow
@pytest.mark.parametrize(
    "kilobytes, steps, told",
    [
        # The model's tokenizer doesn't fit.
        (8, 2, ["train_sft.py: {run}: cannot be written (File too large); make room there"]),
        # The first checkpoint doesn't.
        (24, 120, ["train_sft.py: {run}/checkpoints: a checkpoint could not be written ("]),
    ],
)
def test_a_binary_on_a_full_disk_ends_in_a_line(
    kilobytes, steps, told, tiny_model, scenes, tmp_path
):
    """By `ulimit -f` of bash, whose blocks have 1024 bytes."""
    run = tmp_path / "run"
    flags = together.recipe("sft", tiny_model, scenes, num_steps=steps, checkpoint__every=0)
    script = REPOSITORY / "scripts/train_sft.py"
    process = subprocess.Popen(
        ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]
        + [sys.executable, str(script), *flags, f"--workdir={run}"],
        # What would be written to the cache of programs is cut too.
        env=together.environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ((status, said),) = together.finish([process])
    assert status == 2 and "Traceback" not in said, said
    for line in told:
        assert said.count(line.format(run=run)) == 1, said
    assert said.splitlines()[-1].startswith("train_sft.py: ")
    assert steps == 2 or len(metrics.read(run)) < 10  # not at the end


def test_files_that_cannot_be_written_cost_a_line_each(steady_recipe, scenes, tmp_path, capsys):
    held_out = {
        "evaluation.every": 1,
        "evaluation.benchmark": str(scenes / "eval.json"),
        "evaluation.image_root": str(scenes),
        "evaluation.limit": 2,
        "evaluation.max_tokens": 8,
    }
    for name in ("tensorboard", "groups", "held_out"):
        (tmp_path / name).write_text("in the way")
    train(steady_recipe("grpo", num_steps=2, **{"grpo.log_groups_every": 1}, **held_out), tmp_path)
    said = capsys.readouterr().err
    for name in ("tensorboard", "groups", "held_out"):
        assert said.count(f"{tmp_path}/{name}: cannot be written") == 1, said
    assert [row["step"] for row in metrics.read(tmp_path) if "eval_acc" in row] == [1, 2]

    log = RejectedLog(tmp_path / "groups" / "rejected.jsonl", step=0)
    for number in "121":
        log.add(Rejected("a row", number, "bad"))
    assert len(log) == 2
    assert capsys.readouterr().err.count("lists no more rows") == 1


def test_without_room_for_metrics_the_run_ends_saved(steady_recipe, tmp_path, monkeypatch):
    write, full = lines.LineWriter.write, []

    def fail(self, row):
        if full and self.path.name == "metrics.jsonl":
            raise DataError(f"{self.path}: cannot be written (No space left on device); make room")
        return write(self, row)

    monkeypatch.setattr(lines.LineWriter, "write", fail)
    save = metrics.Metrics.close
    monkeypatch.setattr(metrics.Metrics, "close", lambda self: (full.clear(), save(self)))
    config = steady_recipe("sft", **{"checkpoint.every": 100})
    with at_step(1, lambda: full.append(True), monkeypatch):
        with pytest.raises(SaveError) as caught:
            train(config, tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        f"stopped after step 2, which is saved: {tmp_path}/metrics.jsonl: cannot"
    )
    assert steps_in(tmp_path) == ["1", "2"]
    train(config, tmp_path)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4]


def test_a_signal_during_the_last_step_or_save_is_not_lost(
    steady_recipe, tmp_path, monkeypatch, capsys
):
    config = steady_recipe("sft", num_steps=1)
    with at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch):
        with pytest.raises(SystemExit) as stopped:
            train(config, tmp_path / "step")
    assert stopped.value.code == 143 and steps_in(tmp_path / "step") == ["1"]
    assert "all 1 steps are done and saved" in capsys.readouterr().err

    close = metrics.Metrics.close
    monkeypatch.setattr(
        metrics.Metrics,
        "close",
        lambda self: (os.kill(os.getpid(), signal.SIGINT), close(self)),
    )
    with pytest.raises(SystemExit) as stopped:
        train(config, tmp_path / "save")
    assert stopped.value.code == 130 and steps_in(tmp_path / "save") == ["1"]


def test_a_torn_line_of_metrics_is_passed_over_by_every_reader(
    steady_recipe, scenes, tmp_path, refusal
):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "eval_acc": 0.25}]
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"step": 3, "loss": 0.2, "eva')
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    (tmp_path / "checkpoints/2/_CHECKPOINT_METADATA").write_text("{}")
    assert metrics.read(tmp_path) == rows and metrics.held_out(tmp_path) == {2: 0.25}
    assert run_folder.find_run(tmp_path / "best").step == 2
    page = tmp_path / "report.html"
    flags = (f"--benchmark={scenes}/eval.json", f"--training=a={tmp_path}", f"--output={page}")
    assert refusal("report", *flags) == "" and page.exists()
    written = metrics.Metrics(tmp_path, step=2, num_steps=4, name="sft")
    written.open()
    written.write(3, {"loss": 0.125}, ())
    written.close()
    assert [row["loss"] for row in metrics.read(tmp_path)] == [1.0, 0.5, 0.125]
    path.write_text('{"step": 1\n' + text)
    with pytest.raises(DataError, match=r"metrics.jsonl line 1: not a JSON object"):
        run_folder.find_run(tmp_path / "best")


def test_a_torn_line_of_predictions_is_passed_over_by_every_reader(
    scenes, tmp_path, refusal, capsys
):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"index": 3, "response": "(1,2),(3,4)"}\n{"index": 4, "resp')
    known = (f"--benchmark={scenes}/eval.json", f"--output={tmp_path}/out")
    assert refusal("score", *known, f"--predictions={path}") == ""
    assert "its last line was not finished" in capsys.readouterr().err
    assert refusal("report", *known, f"--predictions=a={path}") == ""
