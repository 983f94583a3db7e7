-- Redis: clients get the server whose role is master.

local function is_master(server)
  local connection, why = tcp.connect(server.address)
  if not connection then return false, why end
  connection:send("ROLE\r\n")
  local array, problem = connection:line()
  if not array then return false, problem end
  if array:sub(1, 1) ~= "*" then return false, array:match("^-?([^\r\n]*)") end
  -- The length of the word precedes it.
  connection:line()
  local role = connection:line() or ""
  if role ~= "master\r\n" then return false, "role " .. role:gsub("%s+$", "") end
  return true
end

service "redis" {
  listen = "192.0.2.1:6379",
  "10.0.0.1:6379",
  "10.0.0.2:6379",
  check = check.script { run = is_master },
}
