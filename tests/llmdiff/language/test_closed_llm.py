"""A closed LLM behind a real server that answers, hangs, fails, limits, rambles or means harm."""

import time

import pytest
from closed_endpoint import Endpoint, raw, says

from llmdiff.errors import ClosedLLMError, ConfigError
from llmdiff.language.chat_completions import checked_answer
from llmdiff.language.closed_llm import KEY_VARIABLE, ClosedLLM, ClosedLLMSettings

SECRET = "sk-not-for-anybody"


def hangs(handler):
    time.sleep(5)


def drips(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(
        "llmdiff.language.closed_llm.random.uniform", lambda low, high: 0.01
    )  # shorter back-off
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    endpoints = []

    def start(*script):
        endpoints.append(Endpoint(*script))
        return endpoints[-1]

    yield start
    for endpoint in endpoints:
        endpoint.close()


def _closed(endpoint, cache=None, **changes):
    settings = {"timeout_s": 2.0, "budget_s": 4.0, "retries": 2} | changes
    return ClosedLLM(ClosedLLMSettings(url=endpoint.url, model="closed-1", **settings), cache)


def test_an_answer_is_asked_for_in_openais_format_and_kept(serve, tmp_path):
    endpoint = serve(says('  "A red apple left of a cat."\n'))
    prompt = "the fruit that keeps the doctor away, left of a cat"
    for _ in range(2):  # the second one is another process as far as memory goes
        assert _closed(endpoint, tmp_path).answers(prompt) == ("A red apple left of a cat.",)
    assert len(endpoint.requests) == 1
    path, _, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "closed-1"
    assert body["messages"][1] == {"role": "user", "content": prompt}


def test_another_question_is_not_answered_from_the_cache(serve, tmp_path):
    endpoint = serve(says("One."), says("Two."), says("Three."))
    assert _closed(endpoint, tmp_path).answers("a") == ("One.",)
    assert _closed(endpoint, tmp_path).answers("b") == ("Two.",)
    assert _closed(endpoint, tmp_path, temperature=0.7).answers("a") == ("Three.",)


def test_a_damaged_cache_is_asked_again(serve, tmp_path):
    endpoint = serve(says("One."), says("Two."))
    _closed(endpoint, tmp_path).answers("a")
    next(tmp_path.glob("*.json")).write_text('{"answer": 3')
    assert _closed(endpoint, tmp_path).answers("a") == ("Two.",)


def test_an_ensemble_asks_with_other_seeds(serve):
    endpoint = serve(says("One."), says("Two."), says("One."))
    assert _closed(endpoint, answers=3).answers("a") == ("One.", "Two.")
    assert len({body["seed"] for _, _, body in endpoint.requests}) == 3


@pytest.mark.parametrize(
    "trouble",
    [
        raw(b"slow down", 429, retry_after="0.05"),
        raw(b"slow down", 429, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"),
        raw(b"oops", 500),
        raw(b"not json at all"),
        raw(b"[" * 100_000),
        raw(b'{"choices": []}'),
        raw(b'{"choices": [{"message": {"content": null}}]}'),
        raw(b'{"choices": [{"message": {"content": "a cat to the"}, "finish_reason": "length"}]}'),
        says("first\nsecond\nthird"),
        says("x" * 401),
        says("a \x1b[31mred\x1b[0m apple"),
        says("..."),
        says(""),
    ],
)
def test_trouble_once_is_tried_again(serve, trouble):
    endpoint = serve(trouble, says("A cat."))
    assert _closed(endpoint).answers("a") == ("A cat.",)
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("trouble", "reason", "requests"),
    [
        (raw(b"", 401), "status 401", 1),
        (raw(b"", 404), "status 404", 1),
        (raw(b"", 307, location="http://127.0.0.1:1/v1"), "status 307", 1),
        (raw(b"", 503), "status 503", 3),
        (raw(b'"' + b"x" * 2_000_000), "more than 1,000,000 bytes", 3),
    ],
)
def test_lasting_trouble_ends_in_a_warning_and_no_answer(serve, trouble, reason, requests):
    endpoint = serve(trouble)
    with pytest.warns(UserWarning, match=reason):
        assert _closed(endpoint).answers("a") == ()
    assert len(endpoint.requests) == requests


@pytest.mark.parametrize("trouble", [hangs, drips])
def test_hanging_is_bounded(serve, trouble):
    endpoint = serve(trouble)
    began = time.monotonic()
    with pytest.warns(UserWarning, match="going on without it"):
        assert _closed(endpoint, timeout_s=0.4, budget_s=1.0).answers("a") == ()
    assert time.monotonic() - began < 3.0


def test_a_server_that_asks_to_wait_for_long_does_not_hold_anybody(serve):
    endpoint = serve(raw(b"", 429, retry_after="3600"))
    began = time.monotonic()
    with pytest.raises(ClosedLLMError, match="status 429"):
        _closed(endpoint).answer("a")
    assert time.monotonic() - began < 2.0


def test_nobody_there_is_a_warning():
    closed = ClosedLLM(ClosedLLMSettings(url="http://127.0.0.1:9/v1", model="m", retries=0))
    with pytest.warns(UserWarning, match="ConnectError"):
        assert closed.answers("a") == ()


def test_the_key_is_sent_and_nowhere_else(serve, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    endpoint = serve(says("A cat."), raw(b"", 401))
    closed = _closed(endpoint, tmp_path)
    closed.answers("a")
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    with pytest.warns(UserWarning, match="401") as caught:
        closed.answers("b")
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    everything = written + repr(closed) + caplog.text + "".join(str(row.message) for row in caught)
    assert SECRET not in everything


def test_the_key_does_not_travel_unencrypted(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with pytest.raises(ConfigError, match="unencrypted") as caught:
        ClosedLLM(ClosedLLMSettings(url="http://models.example/v1", model="m"))
    assert SECRET not in str(caught.value)
    ClosedLLM(ClosedLLMSettings(url="https://models.example/v1", model="m"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "ftp://x/v1"}, "reword_url is 'ftp://x/v1'"),
        ({"url": "nonsense"}, "reword_url is 'nonsense'"),
        ({"url": "https://me:secret@host/v1"}, "reword_url contains a password"),
        ({"model": " "}, "reword_model is blank"),
        ({"answers": 0}, "answers is 0"),
        ({"budget_s": 0}, "budget_s"),
    ],
)
def test_settings_out_of_range_are_errors_by_name(changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        ClosedLLMSettings(**({"url": "https://host/v1", "model": "m"} | changes))
    assert "secret" not in str(caught.value)


def test_equal_prompts_are_asked_once(serve):
    endpoint = serve(says("A cat."))
    closed = _closed(endpoint)
    assert [closed.answers("a"), closed.answers("a")] == [("A cat.",)] * 2
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("- a cat", "a cat"),
        ("Picture: `a cat`", "a cat"),
        ("  a   cat  \n\n", "a cat"),
        ("it's a cat", "it's a cat"),
        ("chat à l'école, 猫", "chat à l'école, 猫"),
    ],
)
def test_answers_are_one_plain_line(content, text):
    assert checked_answer(content, 100) == text
