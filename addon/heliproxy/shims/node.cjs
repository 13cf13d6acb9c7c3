// Preloaded by `heliproxy run` through NODE_OPTIONS: makes https and fetch use HTTPS_PROXY in Node versions that do
// not know NODE_USE_ENV_PROXY (before 22.21, and 23). Newer ones, Bun and Deno do it themselves; there it does nothing.
// Certificates are checked as always: this changes the way, not the trust.
'use strict'

const [major, minor] = process.versions.node.split('.').map(Number)
const old = major < 22 || (major === 22 && minor < 21) || major === 23
const proxy = process.env.https_proxy || process.env.HTTPS_PROXY
if (old && proxy && !process.versions.bun && !process.versions.deno) install(proxy)

function install (proxy) {
  const http = require('http')
  const https = require('https')
  const { hostname: proxyHost, port: proxyPort, username, password } = new URL(proxy)
  const login = username
    ? { 'proxy-authorization': 'Basic ' + Buffer.from(`${username}:${password}`).toString('base64') }
    : {}
  const exceptions = (process.env.no_proxy || process.env.NO_PROXY || '').toLowerCase().split(/[\s,]+/).filter(Boolean)

  const isDirect = (host) => exceptions.some((entry) => {
    const name = entry.replace(/^\*?\./, '').replace(/:\d+$/, '')
    return entry === '*' || host === name || host === entry || host.endsWith('.' + name)
  })

  // Open a tunnel to host:port and give its socket to done(error, socket).
  const tunnel = (host, port, done) => {
    const authority = `${host.includes(':') ? `[${host}]` : host}:${port}`
    const request = http.request({
      host: proxyHost, port: proxyPort, method: 'CONNECT', path: authority,
      headers: { host: authority, ...login }, agent: false
    })
    request.once('error', done)
    request.once('connect', (response, socket) => {
      if (response.statusCode === 200) return done(null, socket)
      socket.destroy()
      done(new Error(`proxy refused CONNECT ${authority}: ${response.statusCode}`))
    })
    request.once('response', (response) => done(new Error(`proxy refused CONNECT ${authority}: ${response.statusCode}`)))
    request.end()
  }

  const connect = https.Agent.prototype.createConnection
  https.Agent.prototype.createConnection = function (options, done) {
    const host = String((options && (options.hostname || options.host)) || 'localhost').toLowerCase()
    if (typeof done !== 'function' || options.socket || options.socketPath || isDirect(host)) {
      return connect.apply(this, arguments)
    }
    tunnel(host, options.port || 443, (error, socket) => {
      if (error) return done(error)
      done(null, connect.call(this, { ...options, socket }))
    })
  }

  // Node's fetch keeps its dispatcher under this name. It is put there when anything of fetch is first touched, and many
  // libraries touch `Headers` long before they call: so now, before them. Whoever sets one later has the last word.
  const slot = Symbol.for('undici.globalDispatcher.1')
  if (typeof globalThis.fetch !== 'function') return
  const connectFetch = ({ protocol, hostname, port, servername }, done) => {
    const host = hostname.replace(/^\[|\]$/g, '').toLowerCase()
    const secure = (socket) => {
      const options = { host, port: port || 443, ALPNProtocols: ['http/1.1'] }
      const name = servername || host
      if (!require('net').isIP(name)) options.servername = name
      settle(require('tls').connect(socket ? { ...options, socket } : options), 'secureConnect')
    }
    const settle = (socket, event) => {
      const fail = (error) => done(error)
      socket.setNoDelay(true)
      socket.once('error', fail)
      socket.once(event, () => { socket.removeListener('error', fail); done(null, socket) })
    }
    if (protocol !== 'https:') settle(require('net').connect({ host, port: port || 80 }), 'connect')
    else if (isDirect(host)) secure()
    else tunnel(host, port || 443, (error, socket) => error ? done(error) : secure(socket))
  }
  void globalThis.Response // loads Node's undici, which fills the slot
  const Agent = globalThis[slot] && globalThis[slot].constructor
  if (Agent) globalThis[slot] = new Agent({ connect: connectFetch })
}
