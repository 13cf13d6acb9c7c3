// @helicone/helicone: proxy client with feedback, API client, scoring worker, async logger, manual logger.
// Arguments: API origin, the proxy's own origin, the fake provider's origin.
const { randomUUID } = require("node:crypto");
const helicone = require("@helicone/helicone");
const OpenAI = require("openai");

const { HeliconeAPIClient, HeliconeAsyncLogger, HeliconeFeedbackRating, HeliconeManualLogger, HeliconeProxyOpenAI } =
  helicone;
const [api, proxy, provider] = process.argv.slice(2);
const messages = [{ role: "user", content: "hi" }];
const model = "gpt-4o-mini";

(async () => {
  const found = {};
  const client = new HeliconeProxyOpenAI({
    apiKey: "sk-test",
    heliconeMeta: { apiKey: "sk-helicone-test", baseUrl: `${proxy}/oai/v1`, user: "proxied" },
  });
  // The id is the client's own choice; the wrapper's return value hides the response's headers.
  found.proxied = randomUUID();
  await client.chat.completions.create({ model, messages }, { headers: { "Helicone-Request-Id": found.proxied } });
  await client.helicone.logFeedback(found.proxied, HeliconeFeedbackRating.Positive);

  const rest = new HeliconeAPIClient({ apiKey: "sk-helicone-test", baseURL: api });
  const queried = await rest.rawClient.POST("/v1/request/query", { body: { filter: "all", limit: 10 } });
  found.queried = queried.data.data.length;
  const worker = rest.scoringWorker();
  await worker.start(
    async (request, bodies) => {
      found.bodies = bodies;
      worker.stop();
      return { scores: { length: bodies.response.choices[0].message.content.length, good: true } };
    },
    { filter: { request_response_rmt: { request_id: { equals: found.proxied } } } },
  );

  const manual = new HeliconeManualLogger({ apiKey: "sk-helicone-test", headers: { "Helicone-User-Id": "manual" } });
  manual.registerRequest({ model, messages });
  manual.sendLog({ id: "x", object: "chat.completion", choices: [], usage: { prompt_tokens: 3, completion_tokens: 4 } });

  const logger = new HeliconeAsyncLogger({
    apiKey: "sk-helicone-test",
    baseUrl: `${api}/v1/trace/log`,
    providers: { openAI: OpenAI },
    headers: { "Helicone-User-Id": "spanned", "Helicone-Property-Hello": "World" },
  });
  logger.init();
  await new OpenAI({ apiKey: "sk-test", baseURL: `${provider}/v1` }).chat.completions.create({ model, messages });
  await new Promise((resolve) => setTimeout(resolve, 500));
  console.log(JSON.stringify(found));
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
