"""The app of the demo: a dozen calls with the vendors' own SDKs, which know nothing of any proxy.

Run by `heliproxy demo` under the same environment that `heliproxy run` gives to any command.
"""

from __future__ import annotations

import anthropic
import openai

MODEL = "gpt-4o-mini"
CLAUDE = "claude-opus-4-8"


def headers(user: str, **more: str) -> dict[str, str]:
    return {"Helicone-User-Id": user, "Helicone-Property-App": "demo"} | more


def ask_openai(client: openai.OpenAI, question: str, user: str, **more: str) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question}], extra_headers=headers(user, **more)
    )
    print(f"  {MODEL:<18} {user:<6} {answer.choices[0].message.content}")


def stream_openai(client: openai.OpenAI, question: str, user: str) -> None:
    text = ""
    with client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=headers(user),
    ) as stream:
        for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    print(f"  {MODEL:<18} {user:<6} {text.strip()}  (streamed)")


def ask_claude(client: anthropic.Anthropic, question: str, user: str, **more: str) -> None:
    answer = client.messages.create(
        model=CLAUDE,
        max_tokens=256,
        messages=[{"role": "user", "content": question}],
        extra_headers=headers(user, **more),
    )
    print(f"  {CLAUDE:<18} {user:<6} {getattr(answer.content[0], 'text', '')}")


def stream_claude(client: anthropic.Anthropic, question: str, user: str) -> None:
    with client.messages.stream(
        model=CLAUDE, max_tokens=256, messages=[{"role": "user", "content": question}], extra_headers=headers(user)
    ) as stream:
        text = "".join(stream.text_stream)
    print(f"  {CLAUDE:<18} {user:<6} {text.strip()}  (streamed)")


def fail(client: openai.OpenAI, user: str) -> None:
    try:
        client.chat.completions.create(
            model="gpt-nope", messages=[{"role": "user", "content": "Hello?"}], extra_headers=headers(user)
        )
    except openai.NotFoundError as e:
        print(f"  {'gpt-nope':<18} {user:<6} {e.status_code}: {e.body['message'] if isinstance(e.body, dict) else e}")


def main() -> None:
    gpt = openai.OpenAI(api_key="sk-demo", max_retries=0)
    claude = anthropic.Anthropic(api_key="sk-ant-demo", max_retries=0)
    ask_openai(gpt, "What is a proxy worth?", "ada")
    ask_openai(gpt, "What is the capital of France?", "ada")
    ask_openai(gpt, "And what is water made of?", "alan")
    stream_openai(gpt, "Tell me, one word after the other.", "ada")
    stream_openai(gpt, "Should I measure?", "alan")
    fail(gpt, "alan")
    ask_claude(claude, "What is a proxy worth?", "ada")
    ask_claude(claude, "What is the capital of France?", "alan")
    stream_claude(claude, "Tell me, one word after the other.", "ada")
    trip = {"Helicone-Session-Id": "trip-1", "Helicone-Session-Name": "Trip planner"}
    ask_openai(gpt, "Where should I go?", "ada", **trip, **{"Helicone-Session-Path": "/plan"})
    ask_claude(claude, "Find me a hotel there.", "ada", **trip, **{"Helicone-Session-Path": "/plan/hotel"})
    ask_openai(gpt, "And a train.", "ada", **trip, **{"Helicone-Session-Path": "/plan/train"})


if __name__ == "__main__":
    main()
