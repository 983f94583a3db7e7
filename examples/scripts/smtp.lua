-- SMTP: the banner of the server must begin with 220. `check.smtp` does more.

local function greets(server)
  local connection, why = tcp.connect(server.address)
  if not connection then return false, why end
  while true do
    local line, problem = connection:line()
    if not line then return false, problem end
    local code, more = line:match("^(%d%d%d)([ -]?)")
    if code ~= "220" then return false, "banner " .. line:gsub("%s+$", "") end
    if more ~= "-" then break end
  end
  connection:send("QUIT\r\n")
  connection:line()
  return true
end

service "mail" {
  listen = "192.0.2.1:25",
  "10.0.0.1:25",
  "10.0.0.2:25",
  check = check.script { run = greets },
}
