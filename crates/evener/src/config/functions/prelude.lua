-- Bounded forms of functions of the standard library. They run as Lua code, so that a call can pause inside
-- them, and their errors have the location of their caller.
local native, coroutine = ...
local error, type, select, raw_pcall, setmetatable = error, type, select, pcall, setmetatable
local tonumber, tostring = tonumber, tostring
local yield, can_yield = coroutine.yield, coroutine.isyieldable
local string, table, math = string, table, math
local concat, insert, remove, move, unpack, sort = table.concat, table.insert, table.remove, table.move, table.unpack, table.sort
local sub, rep = string.sub, string.rep
local match, is_late, is_stopped, message, check = native.match, native.is_late, native.is_stopped, native.message, native.check
local LONG = 4096
local POSITION_MAX = 2^53

-- Lets other calls run if this call has run for long enough.
local function pause()
  if is_late() and can_yield() then yield() end
end

local function outcome(ok, ...)
  if ok then
    if is_stopped() then error("stopped", 0) end
    return true, ...
  end
  if is_stopped((...)) then error((...), 0) end
  return false, message((...))
end

function pcall(f, ...)
  return outcome(raw_pcall(f, ...))
end

-- Calls the matcher again until it has tried every position.
local function search(s, p, init, plain)
  local function judge(more, from, ...)
    if more then
      pause()
      return judge(match(s, p, more, plain))
    end
    return from, ...
  end
  return judge(match(s, p, init, plain))
end

local function of_find(from, to, ...)
  if not from then return nil end
  return from, to, ...
end

local function of_match(s, from, to, ...)
  if not from then return nil end
  if select("#", ...) > 0 then return ... end
  return sub(s, from, to)
end

function string.find(s, p, init, plain)
  return of_find(search(s, p, init or 1, plain and true or false))
end

function string.match(s, p, init)
  s = type(s) == "number" and tostring(s) or s
  return of_match(s, search(s, p, init or 1, false))
end

function string.gmatch(s, p, init)
  s = type(s) == "number" and tostring(s) or s
  check("gmatch", s, p)
  local at, last = init or 1, nil
  if at < 0 then at = #s + at + 1 end
  if at < 1 then at = 1 end
  local function step(from, to, ...)
    if not from then
      at = #s + 2
      return nil
    end
    if to == last then
      -- An empty match directly behind the previous match is skipped.
      at = from + 1
      return false
    end
    at, last = to + 1, to
    if to < from then at = from end
    return of_match(s, from, to, ...)
  end
  return function()
    while at <= #s + 1 do
      local found = table.pack(step(search(s, p, at, "every")))
      if found[1] ~= false then return unpack(found, 1, found.n) end
    end
    return nil
  end
end

function string.gsub(s, p, replacement, most)
  s = type(s) == "number" and tostring(s) or s
  p = type(p) == "number" and tostring(p) or p
  check("gsub", s, p)
  local kind = type(replacement)
  if kind == "number" then
    replacement, kind = tostring(replacement), "string"
  end
  if kind ~= "string" and kind ~= "table" and kind ~= "function" then
    error("bad argument #3 to 'gsub' (string/function/table expected, got " .. (replacement == nil and "no value" or kind) .. ")", 2)
  end
  local parts, count, at, done, last = {}, 0, 1, 0, nil
  local is_anchored = sub(p, 1, 1) == "^"
  while not most or count < most do
    local found = table.pack(search(s, p, at, false))
    local from, to = found[1], found[2]
    if not from then break end
    if to == last and to < from then
      -- An empty match directly behind the previous match is skipped.
      if at > #s then break end
      at = at + 1
    else
      count = count + 1
      local whole = sub(s, from, to)
      local value
      if kind == "string" then
        value = native.expand(replacement, whole, unpack(found, 3, found.n))
      elseif kind == "table" then
        value = replacement[found.n > 2 and found[3] or whole]
      elseif found.n > 2 then
        value = replacement(unpack(found, 3, found.n))
      else
        value = replacement(whole)
      end
      if not value then value = whole end
      if type(value) ~= "string" and type(value) ~= "number" then
        error("invalid replacement value (a " .. type(value) .. ")", 2)
      end
      parts[#parts + 1] = sub(s, done + 1, from - 1)
      parts[#parts + 1] = value
      done, at, last = to, to + 1, to
      if to < from then at = from end
    end
    if is_anchored then break end
    if at > #s + 1 then break end
  end
  parts[#parts + 1] = sub(s, done + 1)
  return concat(parts), count
end

function string.rep(s, n, separator)
  native.check_repeat(s, n, separator)
  return rep(s, n, separator)
end

for _, name in ipairs { "lower", "upper", "reverse", "sub", "byte", "format", "len", "pack", "unpack", "packsize" } do
  local original = string[name]
  string[name] = function(s, ...)
    if type(s) == "string" and #s > LONG then
      native.check_length(#s)
      pause()
    end
    return original(s, ...)
  end
end

for _, name in ipairs { "len", "codepoint", "offset" } do
  local original = utf8[name]
  utf8[name] = function(s, ...)
    if type(s) == "string" and #s > LONG then
      native.check_length(#s)
      pause()
    end
    return original(s, ...)
  end
end

-- Returns the length of a list. It is read once, because a metatable may give another length each time.
local function length_of(t)
  local length = #t
  if type(length) ~= "number" then error("the length of a list must be a number", 3) end
  if length > LONG then
    native.check_list(length)
    pause()
  end
  return length
end

-- Checks the number of values between two positions. Their difference has no overflow after the first check.
local function check_range(from, to)
  from, to = tonumber(from) or 0, tonumber(to) or 0
  if to < from then return end
  if from < -POSITION_MAX or to > POSITION_MAX then error("a position in a list is out of bounds", 3) end
  local count = to - from
  if count > LONG then
    native.check_list(count)
    pause()
  end
end

function table.concat(t, separator, from, to)
  if type(t) ~= "table" then return concat(t, separator, from, to) end
  from, to = from or 1, to or length_of(t)
  check_range(from, to)
  return concat(t, separator, from, to)
end

function table.unpack(t, from, to)
  from, to = from or 1, to or length_of(t)
  check_range(from, to)
  return unpack(t, from, to)
end

function table.insert(t, ...)
  if type(t) ~= "table" or select("#", ...) == 0 or select("#", ...) > 2 then return insert(t, ...) end
  local length = length_of(t)
  if native.is_plain(t) then return insert(t, ...) end
  -- Metamethods run here, in Lua, where the call can pause.
  local at, value = ...
  if select("#", ...) == 1 then
    at, value = length + 1, at
  end
  if at < 1 or at > length + 1 then error("bad argument #2 to 'insert' (position out of bounds)", 2) end
  for i = length, at, -1 do t[i + 1] = t[i] end
  t[at] = value
end

function table.remove(t, at)
  if type(t) ~= "table" then return remove(t, at) end
  local length = length_of(t)
  if native.is_plain(t) then
    if at == nil then return remove(t) end
    return remove(t, at)
  end
  at = at or length
  if length + 1 ~= at and (at < 1 or at > length + 1) and not (length == 0 and at == 0) then
    error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  local value = t[at]
  for i = at, length - 1 do t[i] = t[i + 1] end
  if at <= length then t[length] = nil end
  return value
end

function table.move(t, from, to, at, ...)
  check_range(from, to)
  return move(t, from, to, at, ...)
end

local function is_before(a, b)
  return a < b
end

-- Sorts by merging, in Lua, so that a call can pause.
function table.sort(t, before)
  if type(t) ~= "table" or (before ~= nil and type(before) ~= "function") then return sort(t, before) end
  local length = length_of(t)
  if length < 2 then return end
  before = before or is_before
  local from, to = {}, {}
  for at = 1, length do from[at] = t[at] end
  local width = 1
  while width < length do
    for left = 1, length, 2 * width do
      local middle = math.min(left + width, length + 1)
      local stop = math.min(left + 2 * width, length + 1)
      local a, b = left, middle
      for at = left, stop - 1 do
        if a < middle and (b >= stop or not before(from[b], from[a])) then
          to[at], a = from[a], a + 1
        else
          to[at], b = from[b], b + 1
        end
      end
    end
    from, to, width = to, from, 2 * width
  end
  for at = 1, length do t[at] = from[at] end
end
