-- The edge: http is redirected to https, names and paths are routed to pools, clients are limited.
-- Certificates are in examples/certs: NAME.crt and NAME.key for each. Try it, from the root of a checkout:
--   $ mkdir -p examples/certs
--   $ openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=example.org -addext 'subjectAltName=DNS:*.example.org' -keyout examples/certs/example.key -out examples/certs/example.crt
--   $ evener run examples/edge.lua &
--   $ curl -s --cacert examples/certs/example.crt --connect-to ::127.0.0.1:8443 https://www.example.org/
--   www, from the server at port 9001
--   $ curl -s --cacert examples/certs/example.crt --connect-to ::127.0.0.1:8443 https://api.example.org/
--   api, from the server at port 9101
--   $ curl -s -o /dev/null -w '%{http_code} %{redirect_url}\n' -H 'Host: www.example.org' http://127.0.0.1:8080/a
--   308 https://www.example.org:8443/a

local check = check.http { path = "/health" }
local www = pool "www" { "127.0.0.1:9001", "127.0.0.1:9002", check = check, sticky = { by = "cookie" } }
local api = pool "api" { "127.0.0.1:9101", "127.0.0.1:9102", check = check, policy = "least_conn" }
local sorry = pool "sorry" { "127.0.0.1:9009" }

service "redirect" { listen = "127.0.0.1:8080", protocol = "http", redirect = { port = 8443 } }

service "edge" {
  listen = "127.0.0.1:8443", -- for all addresses: { "0.0.0.0:443", "[::]:443" }
  protocol = "http",
  tls = { directory = "certs" }, -- relative to this file
  pool = www,
  routes = {
    { host = "api.example.org", pool = api },
    { host = "www.example.org", path = "/api", pool = api },
  },
  forwarded = { mode = "replace", trust = { "10.0.0.0/8" } },
  health = "/balancer-health",
  deny = { "192.0.2.0/24" },
  denied = sorry,
  per_client = { connections = 200, connection_rate = "50/s", request_rate = "500/s" },
  clients = 10000, -- evener clients --sort rate shows the clients with the most requests
}

-- Local responses in place of the servers, so that the example runs on any machine. Remove these lines, and write
-- the addresses of your servers in the pools.
for port, name in pairs { [9001] = "www", [9002] = "www", [9101] = "api", [9102] = "api", [9009] = "sorry" } do
  service("server" .. port) {
    listen = "127.0.0.1:" .. port,
    protocol = "http",
    respond = { body = ("%s, from the server at port %d\n"):format(name, port) },
  }
end
