-- The edge: http is redirected to https, names and paths are routed to pools, clients are limited.
-- Try it with certificates in ./certs (name.crt, name.key): evener check examples/edge.lua

local check = check.http { path = "/health" }
local www = pool "www" { "127.0.0.1:9001", "127.0.0.1:9002", check = check, sticky = { by = "cookie" } }
local api = pool "api" { "127.0.0.1:9101", "127.0.0.1:9102", check = check, policy = "least_conn" }
local sorry = pool "sorry" { "127.0.0.1:9009" }

service "redirect" { listen = "127.0.0.1:8080", protocol = "http", redirect = { port = 8443 } }

service "edge" {
  listen = { "127.0.0.1:8443", "[::1]:8443" },
  protocol = "http",
  tls = { directory = "certs" },
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
}
