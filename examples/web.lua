-- Three web servers; the third one is used only when the others are down.
-- Try it, from the root of a checkout:
--   $ evener run examples/web.lua &
--   $ curl -s http://127.0.0.1:8080/
--   server at port 9002
--   $ evener maintenance web/127.0.0.1:9002
--   web/127.0.0.1:9002: in maintenance
--   $ curl -s http://127.0.0.1:8080/
--   server at port 9001
--   $ evener status

local web = pool "web" {
  "127.0.0.1:9001",
  { "127.0.0.1:9002", weight = 2, max = 500, hard = 600 },
  { "127.0.0.1:9009", tier = 2, name = "sorry" },

  policy = "least_conn",
  sticky = { size = 10000, ttl = "1h" },
  check = check.http { path = "/health", every = "2s", timeout = "1s", rise = 2, fall = 3 },
  slow_start = "30s",
}

service "www" {
  listen = "127.0.0.1:8080", -- for all addresses: { "0.0.0.0:8080", "[::]:8080" }
  pool = web,
  connections_max = 2000,
}

-- Local responses in place of the three servers, so that the example runs on any machine. Remove these lines,
-- and write the addresses of your servers in the pool.
for _, port in ipairs { 9001, 9002, 9009 } do
  service("server" .. port) {
    listen = "127.0.0.1:" .. port,
    protocol = "http",
    respond = { body = "server at port " .. port .. "\n" },
  }
end
