-- gRPC: grpc.health.v1.Health/Check must answer SERVING, over HTTP/2 without TLS.

local DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
local END_STREAM, END_HEADERS, ACK = 1, 4, 1

local function frame(kind, flags, stream, payload)
  return string.pack(">I3BBI4", #payload, kind, flags, stream) .. payload
end

-- A header of HPACK without compression.
local function header(name, value)
  return "\0" .. string.pack("s1s1", name, value)
end

local function request(server)
  local headers = "\x83\x86" -- :method POST, :scheme http
    .. header(":path", "/grpc.health.v1.Health/Check")
    .. header(":authority", server.address)
    .. header("content-type", "application/grpc")
    .. header("te", "trailers")
  -- A message that is not compressed, of 0 bytes: the health of the whole server.
  local message = "\0\0\0\0\0"
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" .. frame(SETTINGS, 0, 0, "")
    .. frame(HEADERS, END_HEADERS, 1, headers) .. frame(DATA, END_STREAM, 1, message)
end

local function serves(server)
  local connection, why = tcp.connect(server.address)
  if not connection then return false, why end
  connection:send(request(server))
  local body = ""
  while true do
    local head, problem = connection:receive(9)
    if not head then return false, problem end
    local length, kind, flags, stream = string.unpack(">I3BBI4", head)
    local payload, missing = "", nil
    if length > 0 then payload, missing = connection:receive(length) end
    if not payload then return false, missing end
    if kind == SETTINGS and flags & ACK == 0 then connection:send(frame(SETTINGS, ACK, 0, "")) end
    if kind == PING and flags & ACK == 0 then connection:send(frame(PING, ACK, 0, payload)) end
    if kind == GOAWAY then return false, "the server closes the connection" end
    if kind == DATA and stream == 1 then body = body .. payload end
    if stream == 1 and flags & END_STREAM ~= 0 and (kind == DATA or kind == HEADERS) then break end
  end
  -- Field 1 of the response is the status; 1 is SERVING.
  if body:sub(6, 7) == "\x08\x01" then return true end
  return false, #body > 6 and "status " .. body:byte(7) or "no response"
end

service "grpc" {
  listen = "192.0.2.1:50051",
  protocol = "tcp",
  "10.0.0.1:50051",
  "10.0.0.2:50051",
  check = check.script { run = serves },
}
