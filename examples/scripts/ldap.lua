-- LDAP: an anonymous bind must succeed.

-- Reads an element of BER: its tag and contents.
local function element(bytes, at)
  local tag, length = bytes:byte(at, at + 1)
  at = at + 2
  if length >= 128 then
    local octets = length - 128
    length = string.unpack(">I" .. octets, bytes, at)
    at = at + octets
  end
  return tag, bytes:sub(at, at + length - 1), at + length
end

local function binds(server)
  local connection, why = tcp.connect(server.address)
  if not connection then return false, why end
  -- Message 1: version 3, empty name, simple authentication with an empty password.
  connection:send("\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00")
  local head, problem = connection:receive(2)
  if not head then return false, problem end
  local length = head:byte(2)
  if length >= 128 then
    local octets, short = connection:receive(length - 128)
    if not octets then return false, short end
    length = string.unpack(">I" .. #octets, octets)
  end
  local message, missing = connection:receive(length)
  if not message then return false, missing end
  local _, _, after_id = element(message, 1)
  local tag, response = element(message, after_id)
  if tag ~= 0x61 then return false, "not a response to a bind" end
  local _, code = element(response, 1)
  -- Message 2: unbind.
  connection:send("\x30\x05\x02\x01\x02\x42\x00")
  if code ~= "\0" then return false, "result " .. code:byte(1) end
  return true
end

service "ldap" {
  listen = "192.0.2.1:389",
  "10.0.0.1:389",
  "10.0.0.2:389",
  check = check.script { run = binds },
}
