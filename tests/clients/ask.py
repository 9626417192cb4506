"""Asks the endpoint with clients of other people, inside their own environment; prints what they got as JSON.

python ask.py ADDRESS MODEL PICTURE.png QUESTION
"""

import base64
import json
import sys
from typing import Any

from PIL import Image


def langchain(base_url: str, model: str, picture: str, question: str) -> dict[str, Any]:
    """LangChain: a whole answer, a stream, and an answer as an object."""
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    with open(picture, "rb") as file:
        url = f"data:image/png;base64,{base64.b64encode(file.read()).decode()}"
    message = HumanMessage(
        content=[{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    )
    chat = ChatOpenAI(model=model, base_url=base_url, api_key="none", temperature=0, max_tokens=60, max_retries=0)
    whole = chat.invoke([message])
    streamed = "".join(str(chunk.content) for chunk in chat.stream([message]))
    schema = {
        "title": "answer",
        "description": "The picture's colour.",
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    parsed = chat.with_structured_output(schema, method="json_schema").invoke([message])
    return {"whole": whole.content, "streamed": streamed, "usage": whole.usage_metadata, "parsed": parsed}


def lmms_eval(base_url: str, model: str, picture: str, question: str) -> dict[str, Any]:
    """lmms-eval: its asynchronous OpenAI model over two documents of a task."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.chat.async_openai import AsyncOpenAIChat

    documents = [{"image": Image.open(picture).convert("RGB"), "question": question} for _ in range(2)]

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
        return [{"role": "user", "content": content}]

    evaluator = AsyncOpenAIChat(model_version=model, base_url=base_url, api_key="none", num_cpus=2, max_retries=1)
    evaluator.task_dict = {"colours": {"test": documents}}
    options = {"max_new_tokens": 16_384, "temperature": 0, "until": ["\n\n"]}  # beyond the window, as evaluators ask
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(question, messages, dict(options), index, "colours", "test"),
            idx=0,
            metadata={"task": "colours", "doc_id": index, "repeats": 1},
        )
        for index in range(len(documents))
    ]
    results = evaluator.generate_until(requests)
    counts = [result.token_counts.to_dict() if result.token_counts else {} for result in results]
    return {"texts": [result.text for result in results], "counts": counts}


if __name__ == "__main__":
    address, name, path, asked = sys.argv[1:]
    found = {client.__name__: client(f"{address}/v1", name, path, asked) for client in (langchain, lmms_eval)}
    print(json.dumps(found))
