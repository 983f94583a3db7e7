#!/bin/sh
# A check in Lua that removes a server and adds another one. Runs in the VM of `cargo xtask guest`; $EVENER is the program.
. ./lib.sh
$ip addr add 192.0.2.1/32 dev lo
space client to-client
$ip addr add 10.1.0.1/24 dev to-client
$ip -n client addr add 10.1.0.2/24 dev eth0; $ip -n client route add default via 10.1.0.1
number=2
for name in a b c; do
    space $name to-$name
    $ip addr add 10.2.$number.254/24 dev to-$name
    $ip -n $name addr add 10.2.$number.1/24 dev eth0; $ip -n $name route add default via 10.2.$number.254
    serve $name
    number=$((number + 1))
done
echo 1 > /proc/sys/net/ipv4/ip_forward
cat > c.lua <<'LUA'
service "192.0.2.1:80" {
  plane = "ipvs",
  server "10.2.2.1:80" {
    check = function(server, pool)
      if not http.get("http://" .. server.address .. "/").ok then pool:remove(server) end
      if #pool < 2 then pool:add("10.2.4.1:80") end
    end,
  },
  server "10.2.3.1:80",
}
LUA
cat c.lua
start
expect "the servers are in the table" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.2.2.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.2.3.1:80 -m -w 1"
ipvsadm -Ln
same "traffic is balanced" "$(ask client 192.0.2.1:80 10)" "a=5 b=5 failed=0"
kill -9 $server_a
expect "the check removes the killed server and adds the third one" "-A -t 192.0.2.1:80 -s rr" \
    "-a -t 192.0.2.1:80 -r 10.2.2.1:80 -m -w 0" "-a -t 192.0.2.1:80 -r 10.2.3.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.2.4.1:80 -m -w 1"
same "traffic is balanced by the others" "$(ask client 192.0.2.1:80 10)" "b=5 c=5 failed=0"
stop -TERM
end
