-- The file is a program: many services from a few lines. Try it, from the root of a checkout:
--   $ FIRST_PORT=8000 evener run examples/many.lua &
--   $ curl -s http://127.0.0.1:8000/
--   alpha
--   $ curl -s http://127.0.0.1:8002/
--   gamma
--   $ evener status

local first = tonumber(env("FIRST_PORT", "8000"))

for _, name in ipairs { "alpha", "beta", "gamma" } do
  local shards, addresses = {}, {}
  for shard = 1, 4 do
    addresses[shard] = ("127.0.0.%d:%d"):format(shard, first + 1000)
    shards[shard] = server(addresses[shard]) { name = name .. shard }
  end
  shards.policy = policy.maglev { table = 65537 }
  shards.check = check.tcp { every = "1s" }
  pool(name)(shards)
  service(name) { listen = "127.0.0.1:" .. first, pool = name, allow = "127.0.0.0/8" }
  -- Local responses in place of the servers, so that the example runs on any machine.
  service(name .. "-servers") { listen = addresses, protocol = "http", respond = { body = name .. "\n" } }
  first = first + 1
end
