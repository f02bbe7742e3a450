"""Servers that are down, refuse everything, or never answer some requests."""

import pipeline_runs
import pytest
from asking import KEY, write_questions
from pipeline_runs import check_whole, run

from mirg_jax.chat import asking as asking_requests
from mirg_jax.errors import UserError

config, server = pipeline_runs.config, pipeline_runs.server


def test_a_server_that_is_down_ends_the_run_and_rejects_nothing(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 21)
    how = config("http://127.0.0.1:9/v1", retries=2)
    with pytest.raises(UserError, match="no request got an answer .*run the same command"):
        run(how, tmp_path / "out", source)
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""
    fake = server()
    run(config(fake.url), tmp_path / "out", source)
    check_whole(tmp_path / "out", 21)


def test_a_request_that_is_never_answered_is_given_up(server, config, tmp_path, monkeypatch):
    # A fifth of the requests fail, in an order that differs: three in a row are no outage here.
    monkeypatch.setattr(asking_requests, "_FIRST_OUTAGE", 30)
    monkeypatch.setattr(asking_requests, "_OUTAGE", 30)
    source = write_questions(tmp_path / "data", 70)
    fake = server("--bad=0.2", "--flaws=500")
    run(config(fake.url, retries=1), tmp_path / "out", source)
    _, rejected = check_whole(tmp_path / "out", 70)
    assert rejected and all("HTTP 500" in row["reason"] for row in rejected)
    asked = len(fake.requests())
    run(config(fake.url), tmp_path / "out", source)
    assert len(fake.requests()) == asked
    run(config(fake.url), tmp_path / "out", source, retry_failed=True)
    accepted, _ = check_whole(tmp_path / "out", 70)
    assert len(accepted) > 70 - len(rejected)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_server_that_refuses_everything(server, config, tmp_path, status):
    source = write_questions(tmp_path / "data", 42)
    fake = server(f"--status={status}")
    with pytest.raises(UserError, match=f"HTTP {status}: .*\\[key\\]") as caught:
        run(config(fake.url), tmp_path / "out", source)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert len(fake.requests()) <= 16 + 3
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""
    assert KEY not in (tmp_path / "out/replies.jsonl").read_text()


def test_a_stage_whose_server_refuses_everything(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 42)
    good, bad = server(), server("--status=422")
    how = config(good.url, **{"stages.mapping.base_url": bad.url})
    with pytest.raises(UserError, match="^mapping: .*HTTP 422"):
        run(how, tmp_path / "out", source)
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""
    how.stages.mapping.base_url = good.url
    run(how, tmp_path / "out", source)
    check_whole(tmp_path / "out", 42)
    assert len(good.requests()) == 126


def test_a_request_that_the_server_refuses(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 70)
    fake = server("--bad=0.1", "--flaws=400")
    run(config(fake.url), tmp_path / "out", source)
    _, rejected = check_whole(tmp_path / "out", 70)
    assert rejected and all("HTTP 400" in row["reason"] for row in rejected)
    asked = len(fake.requests())
    run(config(fake.url), tmp_path / "out", source)
    assert len(fake.requests()) == asked
