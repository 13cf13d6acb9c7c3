// @helicone/helpers: the manual logger in all its forms, and the prompt manager. Arguments: API origin.
import { HeliconeManualLogger, HeliconePromptManager } from "@helicone/helpers";

const origin = process.argv[2];
const headers = { "Helicone-Property-App": "demo", "Helicone-User-Id": "u1", "Helicone-Session-Id": "s1" };
const logger = new HeliconeManualLogger({ apiKey: "sk-helicone-test", headers, loggingEndpoint: origin });
const request = { model: "gpt-4o-mini", messages: [{ role: "user", content: "hi" }] };
const answer = {
  id: "c1",
  object: "chat.completion",
  model: "gpt-4o-mini",
  choices: [{ index: 0, message: { role: "assistant", content: "yo" }, finish_reason: "stop" }],
  usage: { prompt_tokens: 9, completion_tokens: 2, total_tokens: 11 },
};
const chunks = ["Hel", "lo"].map((content, i) => ({
  id: "c1",
  object: "chat.completion.chunk",
  model: "gpt-4o-mini",
  choices: [{ index: 0, delta: { content }, finish_reason: i ? "stop" : null }],
}));
const as = (name) => ({ "Helicone-Property-Case": name });

for (const provider of [undefined, "openai", "anthropic", "google", "mistral"]) {
  await logger.logRequest(
    request,
    async (recorder) => recorder.appendResults(answer),
    as(`request-${provider}`),
    provider,
  );
}
const sse = () =>
  new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(chunk)}\n\n`));
      controller.enqueue(new TextEncoder().encode("data: [DONE]\n\n"));
      controller.close();
    },
  });
await logger.logStream(request, async (recorder) => recorder.attachStream(sse()), as("stream"));
await logger.logSingleStream(request, sse(), as("single-stream"));
await logger.logSingleRequest(request, JSON.stringify(answer), { additionalHeaders: as("single-request"), latencyMs: 321 });

async function* events() {
  yield* chunks;
}
const builder = logger.logBuilder(request, as("builder-stream"));
await builder.attachStream(Object.assign(events(), { toReadableStream: () => null }));
await builder.sendLog();
const whole = logger.logBuilder(request, as("builder-response"));
whole.setResponse(JSON.stringify(answer));
await whole.sendLog();
const failed = logger.logBuilder(request, as("builder-error"));
failed.setError(new Error("boom"));
await failed.sendLog();
await logger.logRequest(
  { _type: "tool", toolName: "weather", input: { city: "SF" } },
  async (recorder) => recorder.appendResults({ output: "sunny" }),
  as("tool"),
);
await logger.logRequest(
  { _type: "vector_db", operation: "search", text: "q", databaseName: "db" },
  async (recorder) => recorder.appendResults({ results: [1] }),
  as("vector"),
);

const prompts = new HeliconePromptManager({ apiKey: "sk-helicone-test", baseUrl: origin });
let refused = "";
try {
  const found = await prompts.getPromptBody({ prompt_id: "p1", messages: [], model: "gpt-4o-mini" });
  refused = JSON.stringify(found);
} catch (error) {
  refused = String(error);
}
console.log(JSON.stringify({ refused }));
