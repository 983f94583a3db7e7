-- The XDP plane: the kernel forwards packets at the driver of the interface, before its network stack sees them.
-- It needs root, an interface and servers of your own, so only check it here:
--   $ evener check examples/xdp.lua
--   examples/xdp.lua: valid: 2 services, 2 pools, 4 servers

xdp { flows = 1048576, events = "info" }

-- CoAP with and without DTLS. A client keeps its server at both ports, for days. The servers have the port of the client,
-- and send their responses to this machine, which is their gateway.
service "coap" {
  plane = "xdp",
  protocol = "udp",
  interface = "eth0",
  listen = "192.0.2.1",
  ports = { 5683, 5684 },

  "10.0.0.4",
  "10.0.0.5",
  check = check.tcp { port = 22 },
}

-- TCP with direct server return: the servers have the virtual address on a loopback interface and respond to the clients
-- themselves. The check connects to their own addresses.
service "web" {
  plane = "xdp",
  interface = "eth0",
  listen = "192.0.2.2:80",
  forward = "direct",
  deny = "198.51.100.0/24",
  source_rate = { rate = "10000/s", v4 = 24 },
  syn_cookies = 50000,

  "10.0.0.6",
  "10.0.0.7",
  policy = "maglev",
  check = check.http { path = "/health" },
}
