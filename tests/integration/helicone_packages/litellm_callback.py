"""LiteLLM's helicone callback; where it logs is in HELICONE_API_BASE. Arguments: the fake provider's origin."""

import sys
import time

import litellm

litellm.success_callback = ["helicone"]
metadata = {"Helicone-User-Id": "u1", "Helicone-Property-Env": "dev", "Helicone-Session-Id": "s1"}
litellm.completion(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "hi"}],
    api_key="sk-test",
    api_base=f"{sys.argv[1]}/v1",
    metadata=metadata,
)
time.sleep(2)  # the callback runs in a thread that does not keep the program
