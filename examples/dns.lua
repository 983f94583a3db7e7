-- DNS over UDP and over TCP, to the same resolvers. Each client keeps its flow; a resolver that dies loses its flows at
-- once.

local resolvers = pool "resolvers" {
  "127.0.0.1:5301",
  "127.0.0.1:5302",

  policy = "hash",
  -- A question for the root's name servers, as bytes: ID 1, recursion desired, one question.
  check = check.udp { send = "\0\1\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1", expect = "\0\1", every = "1s" },
}

service "dns-udp" { listen = "127.0.0.1:5300", protocol = "udp", pool = resolvers, idle_timeout = "5s" }
service "dns-tcp" { listen = "127.0.0.1:5300", pool = resolvers, idle_timeout = "10s" }
