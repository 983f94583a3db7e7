-- Functions whose calls have another form than a name and a table, and the library of functions that run later.

---Addresses of clients: one address such as "192.0.2.7", or a network such as "192.0.2.0/24".
---@alias evener.prefix string|evener.Prefixes

---@class (exact) evener.Prefixes

---A source of servers, or a server with keys.
---@class evener.Source

---@class (exact) evener.Check

---@class (exact) evener.Policy

---An item of a list of servers.
---@alias evener.item string|evener.server|evener.Source

---A check by a function: true passed, false failed (and a reason), nothing is no verdict.
---@alias evener.CheckFunction fun(server: evener.Server, pool: evener.Pool): boolean?, string?

---A server of a running instance. Values are those of now.
---@class evener.Server
---@field name string
---@field address string
---@field host string
---@field port integer
---@field weight integer 0 to 65535; can be set
---@field tier integer
---@field active integer its connections
---@field state string
---@field up boolean
---@field reason string
---@field pool evener.Pool

---A pool: a value of the key `pool`, and in functions that run later the servers of a running instance.
---@class evener.Pool
---@field name string
---@field [integer] evener.Server
---@operator len: integer
local Pool = {}

---Returns the number of servers that get clients.
---@return integer
function Pool:up() end

---@return evener.Server[]
function Pool:servers() end

---Returns the server of a name or address, or nil.
---@param name string
---@return evener.Server?
function Pool:server(name) end

---Adds a server and returns it. An address that the pool has is not added again.
---@param address string
---@param keys? evener.server
---@return evener.Server
function Pool:add(address, keys) end

---Returns false if there is no such server.
---@param server evener.Server|string
---@return boolean
function Pool:remove(server) end

---Returns true if the state changed.
---@param server evener.Server|string
---@return boolean
function Pool:drain(server) end

---@param server evener.Server|string
---@return boolean
function Pool:ready(server) end

---@param server evener.Server|string
---@return boolean
function Pool:maintenance(server) end

---An event of the log: its name, and its fields as texts.
---@class evener.Event
---@field name string
---@field [string] string

---Runs a function at an interval, such as "10s", while the instance runs.
---@param interval string
---@param run fun()
function every(interval, run) end

---Runs a function at each event of a name, such as "server_down".
---@param event string
---@param run fun(event: evener.Event)
function on(event, run) end

---Returns a variable of the environment. Without a default, a variable that is not set is an error.
---@overload fun(name: string, default: false): string?
---@param name string
---@param default? string
---@return string
function env(name, default) end

---Writes to standard error, with file and line.
---@param ... any
function print(...) end

---@class evener.exec
---@field allow string[] absolute paths of programs

---@class evener.ExecOptions
---@field stdin? string
---@field timeout? evener.duration|number

---@class evener.ExecResult
---@field ok boolean true for the exit status 0
---@field status? integer
---@field signal? integer
---@field output? string
---@field errors? string
---@field error? string

---In the file: allows programs. In functions that run later: runs one of them, without a shell.
---@overload fun(keys: evener.exec)
---@param program string
---@param arguments? string[]
---@param options? evener.ExecOptions
---@return evener.ExecResult
function exec(program, arguments, options) end

---@class evener.HttpOptions
---@field method? string
---@field headers? table<string, string>
---@field timeout? evener.duration|number
---@field verify? boolean
---@field sni? string
---@field ca? string

---@class evener.HttpResponse
---@field ok boolean true for a status from 200 to 399
---@field status? integer
---@field headers? table<string, string>
---@field body? string
---@field error? string

http = {}

---@param url string
---@param options? evener.HttpOptions
---@return evener.HttpResponse
function http.get(url, options) end

---@param url string
---@param body string
---@param options? evener.HttpOptions
---@return evener.HttpResponse
function http.post(url, body, options) end

---@class evener.ConnectOptions
---@field timeout? evener.duration|number
---@field tls? boolean
---@field verify? boolean
---@field sni? string
---@field ca? string

---@class evener.ReadOptions
---@field timeout? evener.duration|number

---A connection. Its functions return nil and the reason if they fail.
---@class evener.Connection
local Connection = {}

---@param bytes string
---@return true?, string?
function Connection:send(bytes) end

---Returns the bytes up to the end of the text.
---@param text string
---@param options? evener.ReadOptions
---@return string?, string?
function Connection:expect(text, options) end

---@overload fun(self: evener.Connection, options: evener.ReadOptions): string?, string?
---@param count? integer
---@param options? evener.ReadOptions
---@return string?, string?
function Connection:receive(count, options) end

---@param options? evener.ReadOptions
---@return string?, string?
function Connection:line(options) end

function Connection:close() end

tcp = {}

---@param address string
---@param options? evener.ConnectOptions
---@return evener.Connection?, string?
function tcp.connect(address, options) end

udp = {}

---Sends a datagram and returns the first response, or nil and the reason.
---@param address string
---@param bytes string
---@param options? evener.ReadOptions
---@return string?, string?
function udp.exchange(address, bytes, options) end

---@class evener.DnsOptions
---@field server? string
---@field timeout? evener.duration|number

---@class evener.DnsResponse
---@field ok boolean true for NOERROR
---@field rcode? string
---@field records? string[]
---@field error? string

dns = {}

---@param name string
---@param type? string
---@param options? evener.DnsOptions
---@return evener.DnsResponse
function dns.query(name, type, options) end

json = {}

---@type any
json.null = nil

---@param value any
---@return string
function json.encode(value) end

---@param text string
---@return any, string?
function json.decode(text) end

log = {}

---@param ... any
function log.error(...) end

---@param ... any
function log.warn(...) end

---@param ... any
function log.info(...) end

---@param ... any
function log.debug(...) end

time = {}

---Seconds since 1970.
---@return number
function time.now() end

---Seconds of a clock that is never set.
---@return number
function time.monotonic() end

---@param duration evener.duration|number
function time.sleep(duration) end
