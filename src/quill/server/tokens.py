"""POST /tokenize and /detokenize, and GET /tokenizer_info, in the shapes of vLLM and llama.cpp.

Tools that score texts ask for the tokens of any text first. A small vocabulary lacks many characters, so they are left
out here; a prompt with such a character is refused.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quill.server.body import read_json
from quill.server.completions.fields import check_ids
from quill.server.completions.text import name_of
from quill.server.errors import ApiError, json_response
from quill.server.models import find_model


class TokenizeFields(msgspec.Struct, kw_only=True):
    """The body of POST /tokenize: the text is `prompt` or `content`."""

    prompt: str | None = None
    content: str | None = None
    model: str | None = None
    return_token_strs: bool | None = None
    add_special_tokens: bool | None = None
    """no effect: there are no special tokens"""


class DetokenizeFields(msgspec.Struct, kw_only=True):
    """The body of POST /detokenize."""

    tokens: list[int]
    model: str | None = None


async def tokenize(request: Request) -> Response:
    """Answer POST /tokenize."""
    limits = request.app.state.settings.limits
    fields, _ = await read_json(request, TokenizeFields, limits)
    text = fields.prompt if fields.prompt is not None else fields.content
    if text is None:
        raise ApiError(400, "there is no text: give it as prompt or as content", param="prompt")
    model = await find_model(request, fields.model)
    tokenizer = model.checkpoint.tokenizer
    tokens = tokenizer.encode(tokenizer.drop_unknown(text)).tolist()
    names = [name_of(tokenizer, token) for token in tokens] if fields.return_token_strs else None
    length = model.checkpoint.config.block_size
    return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": length, "token_strs": names})


async def detokenize(request: Request) -> Response:
    """Answer POST /detokenize."""
    fields, _ = await read_json(request, DetokenizeFields, request.app.state.settings.limits)
    model = await find_model(request, fields.model)
    tokenizer = model.checkpoint.tokenizer
    text = tokenizer.decode(check_ids(fields.tokens, tokenizer))
    return json_response({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """Answer GET /tokenizer_info. A text has no end token here; a line break is the nearest to one."""
    model = await find_model(request, request.query_params.get("model"))
    tokenizer = model.checkpoint.tokenizer
    end = "\n" if not tokenizer.unknown_characters("\n") else tokenizer.decode([0])
    return json_response(
        {
            "tokenizer_class": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": model.checkpoint.config.block_size,
            "eos_token": end,
            "bos_token": end,
            "pad_token": end,
            "chat_template": None,
        }
    )
