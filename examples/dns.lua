-- DNS over UDP and TCP: a resolver is picked for each query. Responses are cached, and expired responses are used while
-- no resolver responds.
-- Try it: evener run examples/dns.lua, then dig @127.0.0.1 -p 5300 example.org

local resolvers = pool "resolvers" {
  "127.0.0.1:5301",
  "127.0.0.1:5302",

  policy = "least_outstanding",
  check = check.dns { name = "a.root-servers.net.", type = "A", rcode = "NOERROR", every = "1s" },
}

service "dns" {
  listen = { "127.0.0.1:5300", "[::1]:5300" },
  protocol = "dns",
  pool = resolvers,
  dns = {
    query_timeout = "1s",
    cache = { entries = 10000, bytes = "16MiB", stale = "1h" },
    rate_limit = { rate = "100/s", slip = 2 },
  },
}

-- Servers are the sockets in a directory, and each client keeps its server, as in mname-balancer.
service "binder" {
  listen = "127.0.0.1:5310",
  protocol = "dns",
  discover = { mname = "/var/run/binder/sockets" },
  sticky = { ttl = "300s", failback = true, rebalance = "15s" },
}
