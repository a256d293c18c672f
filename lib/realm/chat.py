"""A chat at the terminal: ``python -m realm.chat --model PATH [--as user|assistant]``.

``--as user``: the model, UserGPT, is the human, opens, and you answer as the assistant. Its roles are swapped
as everywhere (``simulation.simulators.USERGPT``). An answer that ends early, by Ctrl-C or by an error, stays in the
history as far as it came; a turn of yours that got no answer at all is taken back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from realm.conversations.conversation import Conversation, Message
from realm.conversations.writers import write_conversations
from realm.core.profile import Endpoint
from realm.core.secrets import redact
from realm.core.seeds import SEED_MODULUS
from realm.models.assets import AssetError, cache_folder
from realm.models.gguf import ConversionError
from realm.serving.client import Client, EndpointError
from realm.serving.local import reach
from realm.simulation.simulators import USERGPT

COMMANDS = (
    "/reset forgets what was said, /history shows it, /save FILE writes it, /quit ends; "
    "a line that begins with a blank is no command"
)
# What there is to say about how an answer ended.
NOTES = {
    "stop": "",
    "length": "(cut off: --max-new-tokens is reached, or the context is full)",
    "content_filter": "(cut off: by the service's content filter)",
}
# A model's text must not steer the terminal, and a NUL would make a saved file unreadable.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Chat:
    """One conversation between a model, which ``plays`` user or assistant, and the person at the keyboard."""

    client: Client
    runner: asyncio.Runner
    plays: str
    system: str | None
    seed: int
    terminal: bool  # else no prompts and labels: answers alone go to standard output
    said: list[Message] = field(default_factory=list)
    answers: int = 0
    failures: int = 0

    def run(self) -> None:
        """Talk until the input ends or ``/quit``. Only an interrupt without a terminal is raised."""
        if self.plays == "user":
            self.answer()
        while (line := self._read()) is not None and line.split() != ["/quit"]:
            if line.startswith("/"):
                self.command(*line.split(maxsplit=1))
            elif self.plays == "user" and not self.said:
                self.answer()  # its opening failed; there is nothing yet that a person could answer
            elif line.strip():
                self.said.append(Message(self._person, line.strip()))
                self.answer()

    def answer(self) -> None:
        """Let the model say its turn, shown as it comes."""
        heard: list[str] = []
        if self.terminal:
            print(self._label(self.plays), end="", flush=True)
        note = self._listen(heard)
        print(flush=True)
        self.answers += 1
        if text := "".join(heard).strip():
            self.said.append(Message(self.plays, text))
        elif self.said:
            self.said.pop()
            note += " (no answer: your turn is taken back)"
        else:
            note += " (no opening: press enter to ask for another)"
        if note:
            _tell(note.strip())

    def _listen(self, heard: list[str]) -> str:
        """Show and keep the pieces of one answer; what there is to say about its end, or nothing."""

        def hear(piece: str) -> None:
            heard.append(CONTROL.sub("", piece))
            print(heard[-1], end="", flush=True)

        try:
            # Another seed each time, so that /reset brings another opening.
            reply = self.runner.run(self.client.stream(self._request(), self.seed + self.answers, hear))
        except KeyboardInterrupt:
            if not self.terminal:
                raise
            return "(stopped)"
        except EndpointError as error:
            self.failures += 1
            return f"error: {error}" + ("; /reset starts anew" if error.kind == "context" else "")
        heard[:] = [CONTROL.sub("", reply.text)]
        return NOTES[reply.finish]

    def command(self, name: str, argument: str = "") -> None:
        """One of COMMANDS; anything else lists them."""
        if name == "/reset":
            self.said.clear()
            if self.plays == "user":
                self.answer()
        elif name == "/history":
            for message in self.said:
                print(self._label(message.role) + message.content, flush=True)
        elif name == "/save" and argument:
            self._save(Path(argument.strip()))
        else:
            self._refuse(f"no such command: {COMMANDS}")

    def _save(self, path: Path) -> None:
        meta = {"mode": "chat", "model": self.client.endpoint.model, "model_plays": self.plays, "seed": self.seed}
        system = [Message("system", self.system)] if self.system else []
        record = Conversation(f"chat-{datetime.now():%Y%m%d-%H%M%S}", (*system, *self.said), meta)
        try:
            path = path.expanduser()
            if path.exists():
                self._refuse(f"error: {path}: exists and is left as it is; name another file")
            elif not self.said:
                self._refuse("error: nothing was said yet, so nothing is saved")
            else:
                write_conversations(path, [record])
                _tell(f"{path}: {len(self.said)} turns saved")
        except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who is not there
            self._refuse(f"error: {error}")

    def _request(self) -> list[Message]:
        if self.plays == "user":
            return replace(USERGPT, system=self.system or USERGPT.system).messages(self.said)
        # Without a system message the served template puts its own.
        return [*([Message("system", self.system)] if self.system else []), *self.said]

    def _read(self) -> str | None:
        while True:
            try:
                return CONTROL.sub("", input(self._label(self._person) if self.terminal else ""))
            except EOFError:
                if self.terminal:
                    print()
                return None
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                _tell("\n(Ctrl-D or /quit ends the chat)")

    @property
    def _person(self) -> str:
        return "assistant" if self.plays == "user" else "user"

    def _label(self, role: str) -> str:
        model = "UserGPT" if self.plays == "user" else "model"
        return f"{'human' if role == 'user' else 'assistant'} ({model if role == self.plays else 'you'}): "

    def _refuse(self, text: str) -> None:
        self.failures += 1
        _tell(text)


def _tell(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)


def place_of(model: str) -> tuple[str, Path]:
    """(name, run folder) for ``resolve_model``: what training wrote also knows whose vocabulary it has."""
    path = Path(model).resolve()
    for folder in (path, path.parent):
        if (folder / "merged").is_dir() and path in (folder, folder / "merged", folder / "adapter"):
            return f"stage:{folder.name}", folder.parent
    return model, Path()


def hold(endpoint: Endpoint, run_folder: Path, **settings: Any) -> int:
    """Start or reach the model, chat, and end what was started; the exit code, 1 if a script's line failed.

    Raises EndpointError, AssetError, ConversionError or OSError if the model cannot be had.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (importing it gives input() its line editing)
        _tell(f"reaching {endpoint.model} ...")
    with reach(endpoint, "model", run_folder, cache_folder() / "logs") as address, asyncio.Runner() as runner:
        client = Client(address, endpoint, "model")
        try:
            runner.run(client.check())
            if terminal:
                _tell(COMMANDS)
            chat = Chat(client, runner, terminal=terminal, **settings)
            chat.run()
        finally:
            runner.run(client.close())
    return 1 if chat.failures and not terminal else 0


def _given(arguments: list[str] | None) -> tuple[Endpoint, Path, dict[str, Any]]:
    """Endpoint, run folder and the chat's settings; ends the process where an option cannot be."""
    parser = argparse.ArgumentParser(prog="python -m realm.chat", description="Talk with a model at the terminal.")
    parser.add_argument(
        "--model", required=True, help="a stage's folder, a model folder, an asset, or a service's name"
    )
    parser.add_argument("--as", dest="plays", choices=("user", "assistant"), default="assistant", help="its side")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--engine", choices=("llama.cpp", "transformers", "vllm"), default="llama.cpp")
    where.add_argument("--base-url", help="any OpenAI-compatible address, instead of a local server")
    parser.add_argument("--api-key-env", help="the environment variable that holds its key")
    parser.add_argument("--system", help="a system message instead of the model's own")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, help="of the sampler; random unless given")
    given = parser.parse_args(arguments)
    engine = "api" if given.base_url else given.engine
    name, run_folder = (given.model, Path()) if given.base_url else place_of(given.model)
    shared = {k: getattr(given, k) for k in ("base_url", "api_key_env", "temperature", "max_new_tokens")}
    try:
        endpoint = Endpoint(engine=engine, model=name, concurrency=1, max_retries=1, **shared)
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(" ".join([*map(str, first["loc"]), first["msg"]]))
    seed = random.randrange(SEED_MODULUS) if given.seed is None else given.seed
    return endpoint, run_folder, {"plays": given.plays, "system": given.system, "seed": seed}


def main(arguments: list[str] | None = None) -> int:
    endpoint, run_folder, settings = _given(arguments)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # odd bytes or a narrow locale must not end a chat
    try:
        return hold(endpoint, run_folder, **settings)
    except (EndpointError, AssetError, ConversionError, OSError) as error:
        _tell(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
