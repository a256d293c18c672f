"""The chat as a person meets it: a process at a pseudo-terminal, or a script on its standard input."""

import contextlib
import fcntl
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from stub_server import BAD_KEY, TOO_LONG, BreaksOff, Fault, StubServer

from realm import chat
from realm.conversations.conversation import Message
from realm.conversations.readers import load_conversations
from realm.dialogue.format import USER_SYSTEM_PROMPT, chat_format
from realm.models.gguf import export_gguf

KEY = "sk-not-a-real-key-0123456789"
PATIENCE = 30  # seconds; a slow machine is no failure
CTRL_C, CTRL_D, CTRL_BACKSLASH = "\x03", "\x04", "\x1c"
HUMAN, ASSISTANT = "human (you): ", "assistant (you): "


@pytest.fixture
def server():
    with StubServer() as running:
        yield running


def command(server, *options):
    where = ("--base-url", server.url, "--model", "stub") if server else ()
    return [sys.executable, "-m", "realm.chat", *where, *options]


def environment(**variables):
    # A dumb terminal: readline edits without escape sequences.
    return {**os.environ, "TERM": "dumb", "HF_HUB_OFFLINE": "1", **variables}


def _own_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # else Ctrl-C is a mere character
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the quit key must leave no core file behind
    for heard in (signal.SIGINT, signal.SIGQUIT):  # a shell's background job inherits them ignored
        signal.signal(heard, signal.SIG_DFL)


class Terminal:
    """A process whose terminal is a pseudo-terminal of its own, and everything it showed there."""

    def __init__(self, words, variables):
        self.fd, side = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=_own_terminal, env=variables
        )
        os.close(side)
        self.shown = ""
        self.read_to = 0

    def expect(self, words):
        """What was shown since the last call, up to and with ``words``."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.shown.find(words, self.read_to)) < 0:
            assert time.monotonic() < deadline, f"{words!r} did not come after {self.shown[self.read_to :]!r}"
            assert self._hear(deadline), f"ended without {words!r}: {self.shown[self.read_to :]!r}"
        text, self.read_to = self.shown[self.read_to : found + len(words)], found + len(words)
        return text

    def _hear(self, deadline):
        if select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                piece = os.read(self.fd, 4096)
            except OSError:  # the other side is closed
                return False
            self.shown += piece.decode(errors="replace").replace("\r\n", "\n")
        return True

    def type(self, line, end="\n"):
        os.write(self.fd, (line + end).encode())

    def key(self, key):
        self.type(key, end="")

    def press_until(self, key, words):
        """Python's readline can miss a signal that comes in the instant before it waits; a person presses again."""
        while words not in self.shown[self.read_to :]:
            self.key(key)
            self._hear(time.monotonic() + 1)
        self.expect(words)

    def end_by(self, key):
        """The exit status. A key that comes while readline makes the terminal ready is lost; a person presses again."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # closed meanwhile
                self.key(key)
            self._hear(time.monotonic() + 1)
        return self.code()

    def code(self):
        with contextlib.suppress(AssertionError):
            self.expect("nothing says this")  # reads to the end
        return self.process.wait(PATIENCE)

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.fd)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def at_terminal(server, *options, **variables):
    terminal = Terminal(command(server, *options), environment(**variables))
    try:
        yield terminal
    finally:
        terminal.close()


def script(server, lines, *options, **variables):
    return subprocess.run(
        command(server, *options), input=lines, capture_output=True, text=True, timeout=60, env=environment(**variables)
    )


def said(server, number=-1):
    return server.completions[number].said


# ---------------------------------------------------------------- at the terminal


def test_usergpt_asks_and_the_person_answers_as_the_assistant(server, tmp_path):
    server.script = ["What is tea?", "Which tea is best?", "Shall we start anew?"]
    file = tmp_path / "talk.jsonl"
    with at_terminal(server, "--as", "user", "--seed", "5") as screen:
        screen.expect(f"human (UserGPT): What is tea?\n{ASSISTANT}")
        assert said(server) == [("system", USER_SYSTEM_PROMPT)]
        screen.type("Leaves in water.")
        screen.expect(f"human (UserGPT): Which tea is best?\n{ASSISTANT}")
        assert said(server)[1:] == [("assistant", "What is tea?"), ("user", "Leaves in water.")]
        screen.type(f"/save {file}")
        screen.expect("3 turns saved")
        screen.type("/reset")
        screen.expect(f"human (UserGPT): Shall we start anew?\n{ASSISTANT}")
        assert said(server) == [("system", USER_SYSTEM_PROMPT)]
        screen.key(CTRL_D)
        assert screen.code() == 0
    [kept] = load_conversations(file)
    assert kept.messages == (
        Message("user", "What is tea?"),
        Message("assistant", "Leaves in water."),
        Message("user", "Which tea is best?"),
    )
    assert kept.meta == {"mode": "chat", "model": "stub", "model_plays": "user", "seed": 5}
    assert len({r.body["seed"] for r in server.completions}) == 3


def test_the_person_types_first_where_the_model_is_the_assistant(server):
    server.script = ["Hi.", "Leaves in water."]
    with at_terminal(server) as screen:
        screen.expect(HUMAN)
        assert server.completions == []
        screen.type("Hello!")
        screen.expect(f"assistant (model): Hi.\n{HUMAN}")
        assert said(server) == [("user", "Hello!")]
        screen.type("What is teX\x7fa?")  # a key was mistyped
        screen.expect("assistant (model): Leaves in water.")
        assert said(server) == [("user", "Hello!"), ("assistant", "Hi."), ("user", "What is tea?")]
        screen.expect(HUMAN)
        screen.type("/history")
        shown = "human (you): Hello!\nassistant (model): Hi.\nhuman (you): What is tea?\n"
        screen.expect(f"{shown}assistant (model): Leaves in water.\n")
        screen.type("/nonsense")
        listing = screen.expect("is no command")
        assert all(word in listing for word in ("/reset", "/history", "/save FILE", "/quit"))
        screen.type("/quit")
        assert screen.code() == 0
    assert len(server.completions) == 2


def test_pieces_show_as_they_come_and_ctrl_c_stops_the_answer_alone(server):
    server.script = ["one two " + "more " * 500, "Fine."]
    server.pause = 0.05
    with at_terminal(server) as screen:
        screen.expect(HUMAN)
        screen.type("Count.")
        screen.expect("assistant (model): one two more")
        screen.key(CTRL_C)
        screen.expect("(stopped)")
        assert server.given_up.wait(PATIENCE)  # the server need not go on either
        screen.expect(HUMAN)
        screen.type("Thanks.")
        screen.expect(f"assistant (model): Fine.\n{HUMAN}")
        screen.press_until(CTRL_C, "Ctrl-D or /quit ends the chat")  # at the prompt it ends nothing
        assert screen.end_by(CTRL_D) == 0
    kept = dict(said(server))["assistant"]
    assert kept.startswith("one two more") and len(kept) < 1000
    assert said(server)[-1] == ("user", "Thanks.")


def test_a_turn_without_an_answer_is_taken_back(server):
    server.script = [TOO_LONG, "Better."]
    with at_terminal(server) as screen:
        screen.expect(HUMAN)
        screen.type("A very long question")
        shown = screen.expect("your turn is taken back")
        assert "the conversation is too long" in shown and "/reset starts anew" in shown
        assert "error:" in shown and "Traceback" not in shown
        screen.type("Short?")
        screen.expect("Better.")
        assert said(server) == [("user", "Short?")]


def test_an_opening_that_failed_is_asked_for_again(server):
    server.script = [Fault(500, "no luck"), Fault(500, "no luck"), "What is tea?"]
    with at_terminal(server, "--as", "user") as screen:
        screen.expect("no opening: press enter")
        screen.type("")
        screen.expect(f"human (UserGPT): What is tea?\n{ASSISTANT}")
        assert said(server) == [("system", USER_SYSTEM_PROMPT)]


# ---------------------------------------------------------------- a script


def test_a_script_gets_answers_and_nothing_else(server, tmp_path):
    server.script = ["Hi.\x1b[2J\x00", "Bye."]
    file = tmp_path / "talk.jsonl"
    options = ("--system", "Be brief.", "--temperature", "0.2", "--max-new-tokens", "9", "--seed", "3")
    done = script(server, f"Hello\x00!\n\n /etc is what?\n/save {file}\n/quit\nnot read\n", *options)
    assert (done.stdout, done.returncode) == ("Hi.[2J\nBye.\n", 0)
    assert "you" not in done.stderr
    wanted = [("system", "Be brief."), ("user", "Hello!"), ("assistant", "Hi.[2J"), ("user", "/etc is what?")]
    assert said(server) == wanted
    assert [(m.role, m.content) for m in load_conversations(file)[0].messages] == [*wanted, ("assistant", "Bye.")]
    body = server.completions[0].body
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stream"]) == (0.2, 9, 3, True)


def test_a_file_that_exists_is_left_as_it_is(server, tmp_path):
    file = tmp_path / "precious.jsonl"
    file.write_text("precious")
    done = script(server, f"/save {tmp_path}/empty\nHello!\n/save {file}\n/save\n/save {tmp_path}/new\n")
    assert f"{file}: exists and is left as it is" in done.stderr
    assert "nothing was said yet" in done.stderr
    assert file.read_text() == "precious"
    assert done.returncode == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "precious.jsonl"]


def test_an_answer_that_breaks_off_stays_and_is_told(server):
    server.script = [BreaksOff("half an"), "Whole."]
    done = script(server, "Hello!\nAgain!\n")
    assert done.stdout == "half an\nWhole.\n"
    assert re.fullmatch(r"error: model \(stub at \S+\): broke off in the middle of an answer\n", done.stderr)
    assert done.returncode == 1
    assert said(server) == [("user", "Hello!"), ("assistant", "half an"), ("user", "Again!")]


def test_an_answer_that_was_cut_is_told(server):
    server.finish_reason = "length"
    assert "--max-new-tokens is reached" in script(server, "Hello!\n").stderr


# ---------------------------------------------------------------- refusals


def refused(done, words, code=1):
    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr and KEY not in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_an_address_where_nothing_listens():
    with StubServer() as gone:
        pass
    refused(script(gone, "Hello!\n"), "nothing answers there; start it, or correct base_url")


def test_a_key_that_is_refused_is_not_shown():
    with StubServer(models=BAD_KEY) as strict:
        done = script(strict, "Hello!\n", "--api-key-env", "CHAT_CREDENTIAL", CHAT_CREDENTIAL=KEY)
    refused(done, "the key is refused (401); check CHAT_CREDENTIAL")
    assert strict.requests[0].authorization == f"Bearer {KEY}"


def test_a_key_variable_that_is_not_set(server):
    refused(script(server, "", "--api-key-env", "NO_SUCH_VARIABLE"), "environment variable NO_SUCH_VARIABLE is not set")
    assert server.requests == []


@pytest.fixture
def talk(monkeypatch, capsys):
    """``chat.main`` in this process, for what never comes to a conversation."""

    def run(*options):
        monkeypatch.setattr(chat, "hold", lambda *a, **k: pytest.fail("it talked"))
        with pytest.raises(SystemExit) as ended:
            chat.main([*options])
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--model"),
        (("--model", "m", "--as", "judge"), "invalid choice: 'judge'"),
        (("--model", "m", "--engine", "vllm", "--base-url", "http://x/v1"), "not allowed with"),
        (("--model", "m", "--api-key-env", "A_KEY"), "api_key_env goes with engine api"),
        (("--model", "m", "--temperature", "9"), "temperature"),
        (("--model", "m", "--max-new-tokens", "0"), "max_new_tokens"),
    ],
)
def test_options_that_cannot_be(talk, options, words):
    assert words in talk(*options)


# ---------------------------------------------------------------- models


def test_a_servable_folder_is_known_by_any_of_its_parts(tmp_path, monkeypatch):
    stage = tmp_path / "02_usergpt_sft"
    for part in ("merged", "adapter"):
        (stage / part).mkdir(parents=True)
    for given in (stage, stage / "merged", stage / "adapter"):
        assert chat.place_of(str(given)) == ("stage:02_usergpt_sft", tmp_path)
    monkeypatch.chdir(stage)
    assert chat.place_of(".") == ("stage:02_usergpt_sft", tmp_path)
    assert chat.place_of("smollm2-135m") == ("smollm2-135m", Path())
    assert chat.place_of(str(tmp_path)) == (str(tmp_path), Path())


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "holds no *.safetensors"), ("no/such/folder", "no local folder of this name"), ("stage", "run the stage")],
)
def test_a_model_that_is_not_there(tmp_path, path, words):
    (tmp_path / "stage" / "merged").mkdir(parents=True)
    refused(script(None, "Hello!\n", "--model", str(tmp_path / path)), words)


# ---------------------------------------------------------------- local servers


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """What training leaves: a tiny UserGPT with the flipped template, exported for llama.cpp."""
    from tiny_model import tiny_tokenizer, write_tiny_model, write_vocabulary
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("run") / "02_usergpt_sft"
    merged = write_tiny_model(folder / "merged")
    template = chat_format("chatml", tiny_tokenizer()).jinja(USER_SYSTEM_PROMPT, flipped=True)
    (merged / "chat_template.jinja").write_text(template)
    (folder / "base_model.txt").write_text("tiny\n")
    write_vocabulary(folder / "base.gguf", AutoModelForCausalLM.from_pretrained(merged))
    export_gguf(merged, folder / "base.gguf", merged / "model-q8_0.gguf")
    yield folder
    for pid in serving(folder):  # whatever a test finds, nothing lives on after it
        os.kill(int(pid), signal.SIGKILL)


def serving(folder):
    """Processes that serve a model of ``folder``, other than the guard."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines[path.parent.name] = path.read_bytes().split(b"\0")
    return [
        pid
        for pid, words in lines.items()
        if b"realm.serving.llama_cpp" in words[:3] and str(folder).encode() in b" ".join(words)
    ]


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("ending", ["/quit", "quit key", "closed terminal", "kill"])
def test_the_server_of_a_chat_ends_with_it(stage, ending, tmp_path):
    options = ("--model", str(stage), "--as", "user", "--max-new-tokens", "8", "--seed", "1")
    with at_terminal(None, *options, REALM_CACHE=str(tmp_path)) as screen:
        screen.expect("human (UserGPT): ")
        assert len(screen.expect(ASSISTANT)) > len(ASSISTANT) + 1  # it said something
        assert len(serving(stage)) == 1
        if ending == "/quit":
            screen.type("/quit")
            assert screen.code() == 0
        elif ending == "quit key":
            screen.key(CTRL_BACKSLASH)
        elif ending == "closed terminal":
            os.close(screen.fd)
        else:
            screen.process.kill()
        assert wait_until(lambda: not serving(stage))


SLOW_START = """
import sys
from realm import chat
from realm.serving import local
local._command = lambda *_: ([sys.executable, "-c", "import time; time.sleep(60)", "slow start of MARK"], "slow")
sys.exit(chat.main(["--model", "MARK"]))
"""


def test_an_interrupt_while_the_model_loads_ends_everything(stage, tmp_path):
    words = [sys.executable, "-c", SLOW_START.replace("MARK", str(stage))]
    screen = Terminal(words, environment(REALM_CACHE=str(tmp_path)))
    try:
        screen.expect("reaching")
        assert wait_until(lambda: (tmp_path / "logs" / "model.log").exists())
        started = time.monotonic()
        screen.press_until(CTRL_C, "^C")
        assert screen.code() == 130
        assert time.monotonic() - started < 15  # not the minutes that a server may take to come up
    finally:
        screen.close()
