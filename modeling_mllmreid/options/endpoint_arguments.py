"""The options of an engine that writes texts in place of a model in this process."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..utils.errors import UserError
from ..utils.ranges import Positive, Threads
from .arguments import ModelArguments

if TYPE_CHECKING:
    from ..text.endpoint import Endpoint


@dataclass
class EndpointArguments:
    """An engine that serves the model: vLLM, SGLang, llama.cpp or another one with an OpenAI-compatible address."""

    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Address of an engine that serves --model, such as http://localhost:8000/v1. Default: the model is "
            "loaded here. The key of an engine that needs one comes from MLLMREID_ENDPOINT_KEY."
        },
    )
    served_model: str | None = field(
        default=None, metadata={"help": "Name of the model at the endpoint. Default: --model."}
    )
    remote: bool = field(
        default=False,
        metadata={"help": "Allow an endpoint on another machine: images and captions are sent there."},
    )
    requests_at_once: Threads = field(default=32, metadata={"help": "Requests to the endpoint at once."})
    request_timeout: Positive = field(
        default=300.0, metadata={"help": "Seconds of silence after which a request to the endpoint has failed."}
    )

    def __post_init__(self) -> None:
        if self.endpoint is None:
            for name, default in EndpointArguments.__dataclass_fields__.items():
                if getattr(self, name) != default.default:
                    raise UserError(f"{name}: belongs to an engine: give --endpoint too, or leave it out")

    def connect(self, model: ModelArguments) -> "Endpoint | None":
        """Returns the engine, or None if the model is to be loaded in this process.

        Args:
            model (`ModelArguments`): The model that the engine serves.

        Raises:
            UserError: As [`Endpoint`], and for options of a model in this process.
        """
        from ..text.endpoint import Endpoint

        if self.endpoint is None:
            return None
        if model.dtype_name != "float32":
            raise UserError(f"dtype {model.dtype}: the engine at --endpoint has its own: leave --dtype out")
        return Endpoint(
            self.endpoint,
            self.served_model or model.model,
            remote=self.remote,
            requests_at_once=self.requests_at_once,
            timeout=self.request_timeout,
        )
