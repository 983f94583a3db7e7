-- PostgreSQL: clients get the server that is not in recovery, the primary. The role `postgres` needs no password
-- from this host (`trust` in pg_hba.conf).

local function message(connection)
  local head, why = connection:receive(5)
  if not head then return nil, why end
  local kind, length = string.unpack(">c1I4", head)
  if length <= 4 then return kind, "" end
  local body, problem = connection:receive(length - 4)
  if not body then return nil, problem end
  return kind, body
end

-- Returns the first message of a kind, or nil and the error of the server.
local function await(connection, wanted)
  while true do
    local kind, body = message(connection)
    if not kind then return nil, body end
    if kind == "E" then return nil, body:match("M([^\0]*)") or "error" end
    if kind == wanted then return body end
  end
end

local function is_primary(server)
  local connection, why = tcp.connect(server.address)
  if not connection then return false, why end
  local parameters = string.pack(">I4zzzzB", 196608, "user", "postgres", "database", "postgres", 0)
  connection:send(string.pack(">I4", #parameters + 4) .. parameters)
  local method, problem = await(connection, "R")
  if not method then return false, problem end
  if string.unpack(">I4", method) ~= 0 then return false, "the server wants a password" end
  local ready, unready = await(connection, "Z")
  if not ready then return false, unready end
  local query = "select pg_is_in_recovery()\0"
  connection:send("Q" .. string.pack(">I4", #query + 4) .. query)
  local row, failure = await(connection, "D")
  if not row then return false, failure end
  connection:send("X\0\0\0\4")
  if row:sub(-1) == "t" then return false, "in recovery" end
  return true
end

service "postgres" {
  listen = "192.0.2.1:5432",
  "10.0.0.1:5432",
  "10.0.0.2:5432",
  check = check.script { run = is_primary },
}
