-- Three web servers; the third one is used only when the others are down.
-- Try it: evener check examples/web.lua

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
  listen = { "127.0.0.1:8080", "[::1]:8080" },
  pool = web,
  connections_max = 20000,
}
