"""helicone-helpers: the manual logger and the prompt manager. Arguments: API origin."""

import asyncio
import json
import sys

from helicone_helpers import HeliconeManualLogger, HeliconePromptManager

origin = sys.argv[1]
headers = {"Helicone-Property-App": "demo", "Helicone-User-Id": "u1", "Helicone-Session-Id": "s1"}
logger = HeliconeManualLogger(api_key="sk-helicone-test", headers=headers, logging_endpoint=origin)
request = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
answer = {
    "id": "c1",
    "object": "chat.completion",
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yo"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


def case(name):
    return {"Helicone-Property-Case": name}


for provider in (None, "openai", "anthropic", "google"):
    logger.log_request(request, lambda recorder: recorder.append_results(answer), case(f"request-{provider}"), provider)


async def build():
    builder = logger.log_builder(request, case("builder-chunks"))
    for content in ("Hel", "lo"):
        chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content}}]}
        builder.add_chunk(json.dumps(chunk))
    await builder.send_log()
    builder = logger.log_builder(request, case("builder-response"))
    builder.add_response(answer)
    await builder.send_log()
    builder = logger.log_builder(request, case("builder-error"))
    try:
        int("boom")
    except ValueError as e:
        builder.set_error(e)
    await builder.send_log()


asyncio.run(build())
times = {"start_time": 1_780_000_000.0, "end_time": 1_780_000_001.5, "time_to_first_token_ms": 120.5}
logger.send_log("openai", request, "Hello there", {**times, "additional_headers": case("string")})
tool = {"_type": "tool", "toolName": "weather", "input": {"city": "SF"}}
logger.log_request(tool, lambda recorder: recorder.append_results({"output": "sunny"}), case("tool"))

prompts = HeliconePromptManager(api_key="sk-helicone-test", base_url=origin)
try:
    refused = repr(prompts.get_prompt_body({"prompt_id": "p1", "messages": [], "model": "gpt-4o-mini"}))
except Exception as e:
    refused = f"{type(e).__name__}: {e}"
print(json.dumps({"refused": refused}))
