// Node 20's fetch knows no HTTPS_PROXY; this makes it one that does, as an app on Node 24 has with NODE_USE_ENV_PROXY=1.
const { EnvHttpProxyAgent, setGlobalDispatcher } = require("undici");
setGlobalDispatcher(new EnvHttpProxyAgent());
