-- DNS over UDP and TCP: a resolver is picked for each query. Responses are cached, and expired responses are used while
-- no resolver responds. The resolvers are public ones: use your own.
-- Try it, from the root of a checkout:
--   $ evener run examples/dns.lua &
--   $ dig +noall +comments @127.0.0.1 -p 5300 example.org | grep -o 'status: [A-Z]*'
--   status: NOERROR
--   $ dig +noall +comments +tcp @127.0.0.1 -p 5300 example.org | grep -o 'status: [A-Z]*'
--   status: NOERROR
--   $ evener clients --sort rate

local resolvers = pool "resolvers" {
  "9.9.9.9:53",
  "1.1.1.1:53",

  policy = "least_outstanding",
  check = check.dns { name = "a.root-servers.net.", type = "A", rcode = "NOERROR", every = "5s" },
}

service "dns" {
  listen = "127.0.0.1:5300", -- for all addresses: { "0.0.0.0:53", "[::]:53" }
  protocol = "dns",
  pool = resolvers,
  clients = 10000,
  dns = {
    query_timeout = "1s",
    cache = { entries = 10000, bytes = "16MiB", stale = "1h" },
    rate_limit = { rate = "100/s", slip = 2 },
  },
}

-- Servers of the npm package mname are discovered in a directory: docs/migrate-from-mname-balancer.md.
