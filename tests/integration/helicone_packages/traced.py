"""helicone-async: OpenAI calls told as spans. Arguments: API origin, the fake provider's origin."""

import sys

from helicone_async import HeliconeAsyncLogger
from openai import OpenAI

api, provider = sys.argv[1:]
logger = HeliconeAsyncLogger(api_key="sk-helicone-test", base_url=f"{api}/v1/trace/log-python")
logger.init()
logger.set_properties({"Helicone-User-Id": "u1", "Helicone-Session-Id": "s1", "Helicone-Property-Env": "dev"})
client = OpenAI(api_key="sk-test", base_url=f"{provider}/v1")
messages = [{"role": "user", "content": "hi"}]
client.chat.completions.create(model="gpt-4o-mini", messages=messages)
for _ in client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True):
    pass
