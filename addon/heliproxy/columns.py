"""What every column of heliproxy.db means: the source of the README's tables. Nothing computes here.

A test holds these tables against the schema, so a column cannot be added without its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

REQUESTS: Mapping[str, str] = {
    "id": "The request's id: the client's `Helicone-Request-Id` when it is a UUID of version 1 to 5, else a new one. "
    "Sent back as `Helicone-Id`.",
    "created_at": "When the request came in. UTC, ISO 8601 with milliseconds and `Z`: it sorts as text.",
    "provider": "Who was called, in lower case: `openai`, `anthropic`, `azure`, `bedrock`, `google`, `vertex`, ...",
    "host": "The provider's host, also when `--upstream` sent the call elsewhere.",
    "path": "Path and query. Keys in it are replaced by `[redacted]`.",
    "method": "HTTP method.",
    "model": "The model to report: `Helicone-Model-Override`, else the answering model, else the one asked for.",
    "request_model": "The model that the request asked for.",
    "response_model": "The model that the answer names.",
    "status": "HTTP status as it turned out: an error inside a 200 stream counts as that error. "
    "-2 timeout, -3 the client left, -4 blocked as a prompt threat, 0 no answer. NULL: under way, or lost.",
    "error": "The error in words, by the provider or by heliproxy. NULL: none.",
    "error_type": "The provider's own error type (`rate_limit_error`), or ours: `client_cancelled`, `upstream_failed`, "
    "`incomplete_stream`, `timeout`, `prompt_threat`, `rate_limited`, `budget`, `lost`, ...",
    "stream": "1: a streamed call.",
    "latency_ms": "Milliseconds from the request's first byte here to the answer's last.",
    "ttft_ms": "Milliseconds to the first byte of a streamed answer. NULL: not streamed.",
    "input_tokens": "All input tokens, cached, audio and image ones included. NULL: not known, which is never 0.",
    "cache_read_tokens": "Part of the input that the provider read from its prompt cache.",
    "cache_write_tokens": "Part of the input that the provider wrote to its prompt cache, for any time.",
    "cache_write_1h_tokens": "Part of `cache_write_tokens` that was written for one hour (Anthropic).",
    "output_tokens": "All output tokens, reasoning, audio and image ones included. NULL: not known.",
    "reasoning_tokens": "Part of the output that was reasoning.",
    "input_audio_tokens": "Part of the input that was audio.",
    "cache_read_audio_tokens": "Part of `cache_read_tokens` that was audio.",
    "output_audio_tokens": "Part of the output that was audio.",
    "input_image_tokens": "Part of the input that was images, where the provider counts them apart.",
    "output_image_tokens": "Part of the output that was images.",
    "usage_source": "Who counted the tokens: `provider`, `header`, `estimated` (counted here), or `none`.",
    "usage_json": "The provider's usage object as sent, at most 64 KiB. `recost` reads it.",
    "lower_bound": "1: the true figure is at least this: part of the usage could not be seen.",
    "cost_usd": "US dollars for what the provider reported as used. NULL: no price is known, which is never 0.",
    "fees_usd": "US dollars, beside `cost_usd`: fees of hosted tools seen in the answer but not reported as billed. "
    "NULL: none.",
    "cost_source": "Source of the price: `provider`, `override`, `genai-prices`, `supplement`, `local`, `cache`.",
    "price_id": "Which price was used: provider and model as the source names them.",
    "price_version": "Which edition of that source.",
    "saved_usd": "US dollars that a cache hit did not cost. NULL: no hit, or the answer's cost was not known.",
    "cache": "`HIT`, `MISS`, or NULL: the cache was not asked.",
    "cache_reference_id": "On a hit: the id of the request whose answer was served.",
    "attempts": "Calls made upstream, retries and fallbacks included. 0: answered here.",
    "attempts_json": "With more than one attempt or with fallbacks: target, status, error, duration and delay of each.",
    "fallback_index": "Which entry of `Helicone-Fallbacks` answered, from 0. NULL: no fallbacks.",
    "user_id": "`Helicone-User-Id`, else the body's own user field.",
    "session_id": "`Helicone-Session-Id`, else the session that Claude Code, Codex or opencode name in their headers.",
    "session_name": "`Helicone-Session-Name`.",
    "session_path": "`Helicone-Session-Path`, for example `/plan/hotel`: the place in the session's tree.",
    "prompt_id": "`Helicone-Prompt-Id`.",
    "key_fingerprint": "The provider key, as 12 hex digits of an HMAC with this installation's secret. "
    "The key itself is not stored.",
    "auth_fingerprint": "The same for `Helicone-Auth`.",
    "run_id": "Which `heliproxy run` it belongs to.",
    "client": "The `User-Agent`.",
    "service_tier": "Tier that was billed or asked for: `flex`, `priority`, `batch`, ...",
    "finish_reason": "Why the model stopped, in the provider's words.",
    "response_id": "The provider's id of the answer.",
    "format": "The wire format that was read: `openai_chat`, `anthropic_messages`, ... NULL: logged, not understood.",
    "source": "How it got here: `proxy`, `websocket`, `log` (manual), `otlp`, `import`.",
    "target_url": "Where the call really went, when that is not `host`. For logged calls: the URL they name.",
    "warning": "What had no effect, or not the effect expected, in sentences. Also sent as `Heliproxy-Warning`.",
    "parse_error": "Why a body could not be read. The client got it unchanged all the same.",
    "truncated": "1: a stored body was cut, see the limits.",
    "incomplete": "1: the call is still under way, and its end replaces the row; or `error_type` is `lost`: "
    "heliproxy ended before the call did.",
    "preview": "The beginning of the last user message.",
    "answer_preview": "The beginning of the answer.",
    "size_request": "Bytes of the request body as received.",
    "size_response": "Bytes of the response body as received.",
}

OTHERS: Mapping[str, Mapping[str, str]] = {
    "properties": {
        "request_id": "The request.",
        "key": "Name: lower case for your own, as Helicone writes it for the automatic ones "
        "(`Helicone-Session-Id`, `Helicone-Cache-Enabled`, ...).",
        "value": "Text.",
    },
    "scores": {
        "request_id": "The request.",
        "name": "Name. A rating is also the score `helicone-score-feedback`.",
        "value": "Number; true is 1.",
        "type": "`number` or `boolean`.",
    },
    "feedback": {
        "request_id": "The request.",
        "name": "Name; `rating` for the plain thumb up or down.",
        "value": "Text.",
        "type": "Type of the value as sent.",
        "created_at": "When, in UTC.",
    },
    "bodies": {
        "request_id": "The request.",
        "request": "The request's body, decoded, at most 1 MiB, compressed as `encoding` says.",
        "response": "The response's body, likewise.",
        "encoding": "`zstd`, or empty: as it is.",
        "request_type": "Content type.",
        "response_type": "Content type.",
        "request_headers": "JSON object of the headers on the allow-list. Never a key.",
        "response_headers": "JSON object, likewise.",
    },
    "under_way": {
        "request_id": "A request that is not over.",
        "process": "The process at work on it: the name of the file in `running/` that it keeps locked.",
    },
    "objects": {
        "kind": "What it is: a webhook, a data set, a tag, ...",
        "id": "Its id.",
        "created_at": "When it was made, in UTC.",
        "updated_at": "When it was last changed, in UTC.",
        "value": "JSON.",
    },
}
"""The other tables: name of the table, then column and meaning."""
