"""One call by one Python client, with nothing set but the environment: `python client.py NAME`.

The model is the client's name, so that its row can be found. Exits with 77 when the client is not installed.
"""

import asyncio
import importlib.util
import json
import sys

CHAT = "https://api.openai.com/v1/chat/completions"
KEY = "sk-test"


def body(name):
    return {"model": name, "messages": [{"role": "user", "content": "hi"}]}


def urllib(name):
    from urllib.request import Request, urlopen

    with urlopen(Request(CHAT, json.dumps(body(name)).encode(), {"content-type": "application/json"})) as answer:
        answer.read()


def requests(name):
    import requests

    requests.post(CHAT, json=body(name), timeout=20).raise_for_status()


def httpx(name):
    import httpx

    httpx.post(CHAT, json=body(name), timeout=20).raise_for_status()


def httpx_async(name):
    import httpx

    async def call():
        async with httpx.AsyncClient(timeout=20) as client:
            (await client.post(CHAT, json=body(name))).raise_for_status()

    asyncio.run(call())


def aiohttp(name, **options):
    import aiohttp

    async def call():
        async with aiohttp.ClientSession(**options) as session, session.post(CHAT, json=body(name)) as answer:
            answer.raise_for_status()
            await answer.read()

    asyncio.run(call())


def aiohttp_trust_env(name):
    aiohttp(name, trust_env=True)


def openai(name):
    import openai

    openai.OpenAI(api_key=KEY, max_retries=0).chat.completions.create(**body(name))


def openai_async(name):
    import openai

    async def call():
        async with openai.AsyncOpenAI(api_key=KEY, max_retries=0) as client:
            await client.chat.completions.create(**body(name))

    asyncio.run(call())


def anthropic(name):
    import anthropic

    anthropic.Anthropic(api_key=KEY, max_retries=0).messages.create(max_tokens=9, **body(name))


def google_genai(name):
    from google import genai

    client = genai.Client(api_key=KEY)
    client.models.generate_content(model=name, contents="hi")


def boto3(name):
    import boto3

    client = boto3.client(
        "bedrock-runtime", region_name="us-east-1", aws_access_key_id="AKIATEST", aws_secret_access_key="test"
    )
    client.converse(modelId=name, messages=[{"role": "user", "content": [{"text": "hi"}]}])


def grpcio(name):
    """No call: gRPC's services are none of ours. That the channel gets ready shows both proxy and trust."""
    import grpc

    with grpc.secure_channel("generativelanguage.googleapis.com:443", grpc.ssl_channel_credentials()) as channel:
        grpc.channel_ready_future(channel).result(timeout=15)


MODULES = {
    "urllib": "urllib",
    "requests": "requests",
    "httpx": "httpx",
    "httpx-async": "httpx",
    "aiohttp": "aiohttp",
    "aiohttp-trust-env": "aiohttp",
    "openai": "openai",
    "openai-async": "openai",
    "anthropic": "anthropic",
    "google-genai": "google.genai",
    "boto3": "boto3",
    "grpcio": "grpc",
}

if __name__ == "__main__":
    wanted = sys.argv[1]
    try:
        found = importlib.util.find_spec(MODULES[wanted])
    except ModuleNotFoundError:
        found = None
    if found is None:
        sys.exit(77)
    globals()[wanted.replace("-", "_")]("py-" + wanted)
