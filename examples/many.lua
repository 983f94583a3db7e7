-- The file is a program: many services from a few lines.

local first = tonumber(env("FIRST_PORT", "8000"))

for _, name in ipairs { "alpha", "beta", "gamma" } do
  local shards = {}
  for shard = 1, 4 do
    shards[shard] = server(("127.0.0.%d:%d"):format(shard, first + 1000)) { name = name .. shard }
  end
  shards.policy = policy.maglev { table = 65537 }
  shards.check = check.tcp { every = "1s" }
  pool(name)(shards)
  service(name) { listen = "127.0.0.1:" .. first, pool = name, allow = "127.0.0.0/8" }
  first = first + 1
end
