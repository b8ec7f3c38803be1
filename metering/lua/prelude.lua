-- Opens every script. `now` is defined just above this text, by metering/scripts.py: microseconds since the epoch.

-- A whole number as text: Lua's own conversion keeps 14 digits only.
local function whole(number)
  return string.format('%.0f', number)
end

-- A number as text that reads back as the same number.
local function exact(number)
  return string.format('%.17g', number)
end
