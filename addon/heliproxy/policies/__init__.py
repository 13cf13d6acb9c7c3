"""What `Helicone-*` headers can ask for, one module a policy: values in, values out, no mitmproxy, no clock."""
