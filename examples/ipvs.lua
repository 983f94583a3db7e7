-- The kernel's IP Virtual Server: https by direct routing, DNS over UDP by NAT, and everything that nftables
-- marks with 7. It needs root, `modprobe ip_vs` and servers of your own, so only check it here:
--   $ evener check examples/ipvs.lua
--   examples/ipvs.lua: valid: 3 services, 3 pools, 7 servers

ipvs {
  timeouts = { tcp = "15min", tcp_fin = "2min", udp = "30s" },
}

pool "web" {
  "10.0.0.11",
  { "10.0.0.12", weight = 2 },
  { "10.0.0.13", tier = 2 },

  policy = "weighted",
  check = check.tcp { port = 443, every = "1s", fall = 2 },
}

service "https" {
  plane = "ipvs",
  listen = { "192.0.2.1:443", "192.0.2.2:443" },
  forward = "direct",
  persistence = "5min",
  -- BIRD announces the addresses while a server is up.
  address_on = "lo",
  pool = "web",
}

service "192.0.2.3:53" {
  plane = "ipvs",
  protocol = "udp",
  scheduler = "sed",
  "10.0.0.21:53",
  { "10.0.0.22:53", max = 5000 },
  check = check.dns { name = "example.org", every = "2s" },
}

service "marked" {
  plane = "ipvs",
  fwmark = 7,
  forward = "ipip",
  persistence = { timeout = "10min", v4 = 24 },
  "10.0.0.31",
  "10.0.0.32",
  check = check.tcp { port = 80 },
}
