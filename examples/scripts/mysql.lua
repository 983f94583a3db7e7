-- MySQL and MariaDB: the server must greet, and must not refuse with an error such as "Too many connections". The
-- server counts the check as an aborted connection: set max_connect_errors high, or skip-name-resolve.

local function greets(server)
  local connection, why = tcp.connect(server.address)
  if not connection then return false, why end
  local head, problem = connection:receive(4)
  if not head then return false, problem end
  local body, missing = connection:receive((string.unpack("<I3", head)))
  if not body then return false, missing end
  local protocol = body:byte(1)
  if protocol == 255 then return false, body:sub(4) end
  if protocol ~= 10 then return false, "protocol " .. protocol end
  return true
end

service "mysql" {
  listen = "192.0.2.1:3306",
  "10.0.0.1:3306",
  "10.0.0.2:3306",
  check = check.script { run = greets },
}
