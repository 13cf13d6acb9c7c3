require "net/http"
body = '{"model": "ruby", "messages": [{"role": "user", "content": "hi"}]}'
uri = URI("https://api.openai.com/v1/chat/completions")
Net::HTTP.post(uri, body, "content-type" => "application/json").value
