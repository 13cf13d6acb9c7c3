// One call by one client of Node, Bun or Deno, with nothing set but the environment: `node client.cjs NAME LABEL`.
// The model is the label, so that its row can be found. Exits with 77 when the client is not installed.
'use strict'
const [name, label] = process.argv.slice(2)
const url = 'https://api.openai.com/v1/chat/completions'
const body = { model: label, messages: [{ role: 'user', content: 'hi' }] }
const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }
const good = async (answer) => {
  if (!answer.ok) throw new Error(`status ${answer.status}`)
  return answer.text()
}
const load = (module) => {
  try {
    // Deno does not know NODE_PATH. Bun has an undici of its own, which a path would go past.
    return require(process.versions.deno ? require('path').join(process.env.NODE_PATH, module) : module)
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error
    process.exit(77)
  }
}

const clients = {
  fetch: () => fetch(url, post).then(good),
  https: () => new Promise((resolve, reject) => {
    const request = require('https').request(url, post, (answer) => {
      answer.resume()
      answer.on('end', () => answer.statusCode === 200 ? resolve() : reject(new Error(`status ${answer.statusCode}`)))
    })
    request.on('error', reject)
    request.end(post.body)
  }),
  axios: () => load('axios').post(url, body),
  undici: () => load('undici').fetch(url, post).then(good),
  openai: () => {
    const { OpenAI } = load('openai')
    return new OpenAI({ apiKey: 'sk-test', maxRetries: 0 }).chat.completions.create(body)
  },
  anthropic: () => {
    const { Anthropic } = load('@anthropic-ai/sdk')
    return new Anthropic({ apiKey: 'sk-test', maxRetries: 0 }).messages.create({ ...body, max_tokens: 9 })
  }
}

clients[name]().then(() => process.exit(0), (error) => {
  console.error(error, error.cause)
  process.exit(1)
})
