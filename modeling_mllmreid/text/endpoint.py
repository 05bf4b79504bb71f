"""An engine behind an endpoint writes the texts: the OpenAI-compatible protocol of vLLM, SGLang and llama.cpp."""

import asyncio
import base64
import io
import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, NamedTuple, TypeVar

from PIL import Image
from pydantic import Field

from ..utils.errors import UserError
from ..utils.json_files import Format, parse_json
from .generation import MIN_NEW_TOKENS

# For engines with a GPU. On two cores, 16 and 32 at once write as many texts a second (`benchmarks/captions.py`).
REQUESTS_AT_ONCE = 32
# Seconds. A long queue in front of a small engine takes minutes.
TIMEOUT, CONNECT_TIMEOUT = 300.0, 10.0
# Answers that pass: too many requests, and faults of the engine or of what stands in front of it.
PASSING = (408, 429, 500, 502, 503, 504)
# Seconds between the tries of a request, and the longest wait that an engine can ask for.
WAITS, LONGEST_WAIT = (1.0, 2.0, 4.0, 8.0, 16.0), 60.0
# The variable with the key of an engine that asks for one. Not OPENAI_API_KEY, which belongs to another service.
KEY = "MLLMREID_ENDPOINT_KEY"
# Engines add their own or the checkpoint's settings to those of a request. These make them the settings of a model in
# this process: no filter but the temperature, the same shortest length. By the owner that the list of models names.
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
_NO_FILTERS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": MIN_NEW_TOKENS}
ENGINE_SETTINGS: dict[str | None, dict[str, Any]] = {
    "vllm": {**_NO_THINKING, **_NO_FILTERS},
    "sglang": {**_NO_THINKING, **_NO_FILTERS},
    "llamacpp": {**_NO_THINKING, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
}

Item = TypeVar("Item")


class Question(NamedTuple):
    """What the engine receives for one text.

    Args:
        name (`str`): What the text belongs to, for the messages.
        text (`str`): The user's turn, without the image.
        image (`Image.Image`, *optional*): The image before the text.
        seed (`int`): Seed of sampling.
    """

    name: str
    text: str
    image: Image.Image | None
    seed: int


class _ServedModel(Format):
    id: str
    owned_by: str | None = None


class _ServedModels(Format):
    data: list[_ServedModel]


class _Message(Format):
    content: str | None = None


class _Choice(Format):
    message: _Message
    finish_reason: str | None = None


class _ChatAnswer(Format):
    choices: Annotated[list[_Choice], Field(min_length=1)]


class Endpoint:
    """An engine that serves a model, here or on another machine.

    Args:
        url (`str`): Its address, with or without `/v1`.
        served_model (`str`): Name by which it serves the model.
        remote (`bool`): Whether texts and images may leave this machine.
        requests_at_once (`int`): Requests that are under way at once.
        timeout (`float`): Seconds without a byte of an answer after which a request has failed.

    Raises:
        UserError: For an address that is none or that needs `remote`, an engine that cannot be reached or does not
            speak the protocol, and a model that it does not serve.

    Example:
        >>> Endpoint("http://gpu-server:8000", "llava-hf/llava-1.5-7b-hf")
        Traceback (most recent call last):
        ...
        UserError: endpoint http://gpu-server:8000/v1/: is another machine, and data would leave this one: ...
    """

    def __init__(
        self,
        url: str,
        served_model: str,
        *,
        remote: bool = False,
        requests_at_once: int = REQUESTS_AT_ONCE,
        timeout: float = TIMEOUT,
    ):
        self._http = _http_client()
        self.served_model, self.requests_at_once, self.timeout = served_model, requests_at_once, timeout
        address = self._address(url)
        # Without a password, which `_address` refuses, it can stand in every message.
        self.url = str(address)
        self.remote = not _is_loopback(address.host)
        self.host = address.host if self.remote else "localhost"
        if self.remote and not remote:
            raise UserError(
                f"endpoint {self.url}: is another machine, and data would leave this one: give --remote true to send "
                "it there, or an address of this machine"
            )
        self._engine_settings = ENGINE_SETTINGS.get(self._owner(), {})

    @property
    def provenance(self) -> dict[str, Any]:
        """Where texts were written, for their provenance: host, name of the served model, whether it is remote."""
        return {"endpoint": self.host, "served_model": self.served_model, "remote": self.remote}

    def answers(
        self,
        items: Iterable[Item],
        question_of: Callable[[Item], Question],
        clean: Callable[[str], str],
        *,
        max_new_tokens: int,
        temperature: float | None,
    ) -> Iterator[list[tuple[Item, str]]]:
        """Has a text written for each item.

        Args:
            items (`Iterable`): Items of any kind.
            question_of (`Callable`): Returns the question of an item. It runs in a thread, as images are read there.
            clean (`Callable[[str], str]`): Applied to each text.
            max_new_tokens (`int`): Longest text, in tokens. A text is cut there, as one of a model in this process.
            temperature (`float`, *optional*): Temperature of sampling; None for the likeliest text.

        Returns:
            `Iterator[list[tuple[Item, str]]]`: Items and their texts, as they come.

        Raises:
            UserError: For a request that fails after all tries or is refused, and an empty text. Everything that was
                written before has been returned.
        """
        settings: dict[str, Any] = {"model": self.served_model, "max_tokens": max_new_tokens, **self._engine_settings}
        if "min_tokens" in settings:
            settings["min_tokens"] = min(settings["min_tokens"], max_new_tokens)
        settings["temperature"] = 0.0 if temperature is None else temperature
        if temperature is not None:
            settings["top_p"] = 1.0
        queue = iter(items)
        with asyncio.Runner() as runner:
            client = self._http.AsyncClient(**self._client_options())
            try:
                pending: dict[asyncio.Task[str], Item] = {}
                while True:
                    for item in islice(queue, self.requests_at_once - len(pending)):
                        answer = self._answer(client, question_of, item, clean, settings)
                        pending[runner.get_loop().create_task(answer)] = item
                    if not pending:
                        return
                    done, _ = runner.run(asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED))
                    finished = [(task, pending.pop(task)) for task in list(pending) if task in done]
                    written = [(item, task.result()) for task, item in finished if task.exception() is None]
                    if written:
                        yield written
                    for task, _ in finished:
                        task.result()  # raises for one that failed
            finally:
                runner.run(client.aclose())

    async def _answer(
        self,
        client: Any,
        question_of: Callable[[Item], Question],
        item: Item,
        clean: Callable[[str], str],
        settings: Mapping[str, Any],
    ) -> str:
        """The text of one item."""
        question, content = await asyncio.to_thread(_content, question_of, item)
        # llama.cpp takes 32 bits.
        seed = {"seed": question.seed % 2**31} if "top_p" in settings else {}
        request = {**settings, **seed, "messages": [{"role": "user", "content": content}]}
        response = await self._post(client, request, question.name)
        where = f"endpoint {self.url}: is not OpenAI-compatible: its answer"
        choice = parse_json(response.content, _ChatAnswer, where=where, remedy="give the address of another").choices[0]
        if choice.finish_reason not in ("stop", "length"):
            raise UserError(
                f"endpoint {self.url}: ended the text of {question.name} by {choice.finish_reason!r}, not by stop or "
                "length: see the log of the engine"
            )
        text = clean(choice.message.content or "")
        if text.strip():
            return text
        if choice.finish_reason == "length":
            raise UserError(
                f"{question.name}: {self.served_model} wrote nothing but thoughts in {settings['max_tokens']} tokens: "
                "turn its thinking off, or give more --max_new_tokens"
            )
        raise UserError(f"{question.name}: {self.served_model} wrote an empty text: try another prompt or model")

    async def _post(self, client: Any, request: Mapping[str, Any], name: str) -> Any:
        """The response to a request; repeats one whose failure may pass."""
        for wait in (*WAITS, None):
            try:
                response = await client.post("chat/completions", json=request)
                if response.status_code not in PASSING:
                    return self._checked(response, f"the request for {name}")
                problem = f"answered {_status(response)}"
                asked = response.headers.get("Retry-After", "")
                wait = wait and max(wait, min(float(asked) if asked.isdecimal() else 0.0, LONGEST_WAIT))
            except self._http.TransportError as error:
                problem = self._broken(error)
            if wait is not None:
                await asyncio.sleep(wait)
        raise UserError(
            f"endpoint {self.url}: {problem}, {len(WAITS) + 1} times in a row: see the log of the engine, then give "
            "the same command again, it writes the rest"
        )

    def _owner(self) -> str | None:
        """The engine that the list of models names. Raises UserError if it does not serve the model."""
        try:
            with self._http.Client(**self._client_options()) as client:
                response = client.get("models")
        except self._http.TransportError as error:
            raise UserError(
                f"endpoint {self.url}: {self._broken(error)}: start the engine there, or give another address"
            ) from None
        where = f"endpoint {self.url}: is not OpenAI-compatible: its list of models"
        served = parse_json(
            self._checked(response, "the request for its models").content,
            _ServedModels,
            where=where,
            remedy="give the address of an engine such as vLLM, SGLang or llama.cpp",
        ).data
        found = next((model for model in served if model.id == self.served_model), None)
        if found is None:
            names = ", ".join(sorted(model.id for model in served)) or "none"
            raise UserError(
                f"endpoint {self.url}: serves no model {self.served_model!r}: give --served_model, it serves {names}"
            )
        return found.owned_by

    def _address(self, url: str) -> Any:
        """The parsed address, up to `/v1/`."""
        try:
            address = self._http.URL(url.strip())
        except (self._http.InvalidURL, UnicodeError):
            address = self._http.URL("")
        if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
            raise UserError(f"endpoint {url!r}: is no address: give one such as http://localhost:8000/v1")
        if address.userinfo:
            raise UserError(f"endpoint {address.host}: has a password in its address: give the key in {KEY}")
        path = address.path.rstrip("/") or "/v1"
        return address.copy_with(path=f"{path}/")

    def _client_options(self) -> dict[str, Any]:
        key = os.environ.get(KEY)
        return {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": self._http.Timeout(self.timeout, connect=min(CONNECT_TIMEOUT, self.timeout)),
            "limits": self._http.Limits(max_connections=self.requests_at_once),
            # A proxy of the environment would take the data of a loopback address to another machine.
            "trust_env": self.remote,
            # The engine must not send the data on.
            "follow_redirects": False,
        }

    def _broken(self, error: Exception) -> str:
        """What is wrong with a connection."""
        if isinstance(error, self._http.ConnectError | self._http.ConnectTimeout):
            return f"cannot be reached ({error or 'no answer'})"
        if isinstance(error, self._http.TimeoutException):
            return f"gave no answer in {self.timeout:g} s"
        return f"broke the connection off ({error or type(error).__name__})"

    def _checked(self, response: Any, request: str) -> Any:
        """The response, if it is a good one. Raises UserError."""
        if response.status_code in (401, 403):
            raise UserError(f"endpoint {self.url}: answered {_status(response)}: give its key in the variable {KEY}")
        if response.status_code != 200:
            raise UserError(
                f"endpoint {self.url}: refused {request}: it answered {_status(response)}: see the log of the engine, "
                "or give another address"
            )
        return response


def _http_client() -> Any:
    """The library that speaks HTTP. huggingface_hub brings one of the two, by its version; they are used alike."""
    try:
        import httpx

        return httpx
    except ImportError:
        pass
    try:
        import httpx2

        return httpx2
    except ImportError:
        raise UserError("endpoint: needs the package httpx: pip install httpx") from None


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine for certain."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _status(response: Any) -> str:
    """The status and the start of what the engine says about it."""
    said = " ".join(response.text.split())
    return f"{response.status_code} ({said[:200]})" if said else str(response.status_code)


def _content(question_of: Callable[[Item], Question], item: Item) -> tuple[Question, list[dict[str, Any]]]:
    """The question of an item, and the content of the user's turn. The image is in a format without loss."""
    question = question_of(item)
    content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
    if question.image is not None:
        file = io.BytesIO()
        question.image.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return question, content
