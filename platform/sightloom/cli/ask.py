"""`sightloom ask`: one question to a served model, streamed to the terminal."""

import base64
import mimetypes
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import openai
import typer
from rich.console import Console

from sightloom.cli import console
from sightloom.errors import SightloomError, UserMistake


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("ask")
    def ask(
        question: Annotated[str, typer.Argument(help="The question.")],
        image: Annotated[list[Path] | None, typer.Option(help="A picture's file; may be given several times.")] = None,
        url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
        model: Annotated[str, typer.Option(help="NAME, NAME@champion or NAME:13; the first model if not given.")] = "",
        think: Annotated[bool | None, typer.Option("--think/--no-think", help="Reason before the answer.")] = None,
        budget: Annotated[int | None, typer.Option(help="Most reasoning tokens.", min=1)] = None,
        max_tokens: Annotated[int, typer.Option(help="Most tokens of reasoning and answer.", min=1)] = 1024,
        temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0, max=2)] = 0.0,
        key: Annotated[str, typer.Option(help="API key.", envvar="SIGHTLOOM_API_KEY")] = "none",
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Ask a served model about a picture.

        sightloom ask "How many red circles are there?" --image scene.png
        """
        if think is False and budget is not None:
            raise UserMistake("--no-think and --budget disagree", "give one of them")
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": data_url(file)}} for file in image or ()]
        parts.append({"type": "text", "text": question})
        extra: dict[str, Any] = {} if think is None else {"chat_template_kwargs": {"enable_thinking": think}}
        if budget is not None:
            extra["thinking_token_budget"] = budget
        base_url = url.rstrip("/").removesuffix("/v1")
        try:
            client = openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=1)
            name = model or first_model(client)
            began = time.monotonic()
            stream = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": parts}],
                max_completion_tokens=max_tokens,
                temperature=temperature,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra,
            )
            result = read(stream, quiet=as_json)
        except openai.APIStatusError as error:
            raise SightloomError(f"{base_url} refused: {error.message}") from error
        except openai.APIError as error:
            raise SightloomError(f"{base_url}: {error.message}", "is it running? sightloom serve DIR") from error
        result |= {"model": name, "seconds": round(time.monotonic() - began, 3)}
        if as_json:
            console.emit(result, True, lambda _: None)


def data_url(file: Path) -> str:
    """A picture's file as a data URL.

    Raises:
        UserMistake: there is no such file.
    """
    if not file.is_file():
        raise UserMistake(f"there is no picture '{file}'", "give the path of an image file")
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def first_model(client: openai.OpenAI) -> str:
    """The endpoint's first model.

    Raises:
        SightloomError: none is ready.
    """
    models = client.models.list().data
    if not models:
        raise SightloomError("the endpoint serves no model yet", "try again in a moment")
    return models[0].id


def read(stream: Any, quiet: bool) -> dict[str, Any]:
    """Follow a stream, printing it unless `quiet`: the reasoning dimmed on stderr, the answer on stdout."""
    aside = Console(stderr=True, highlight=False, soft_wrap=True)
    result: dict[str, Any] = {"thinking": "", "answer": "", "finish": None, "usage": None}
    for chunk in stream:
        if chunk.usage is not None:
            result["usage"] = chunk.usage.model_dump(exclude_none=True)
        for choice in chunk.choices:
            thought = getattr(choice.delta, "reasoning_content", None) or ""
            answer = choice.delta.content or ""
            result["thinking"] += thought
            result["answer"] += answer
            result["finish"] = choice.finish_reason or result["finish"]
            if quiet:
                continue
            if thought:
                aside.print(thought, style="dim", end="", markup=False)
            if answer:
                if result["thinking"] and result["answer"] == answer:
                    aside.print("\n")
                sys.stdout.write(answer)
                sys.stdout.flush()
    if not quiet:
        sys.stdout.write("\n")
    return result
