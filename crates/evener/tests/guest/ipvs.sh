#!/bin/sh
# The program with a kernel that has IPVS. Runs in the VM of `cargo xtask guest`; $EVENER is the program.
. ./lib.sh

# The balancer has 10.0.0.254 towards the servers and 192.0.2.254 towards the client.
space a to-a; space b to-b; space client to-client
$ip addr add 192.0.2.254/24 dev to-client
$ip -n client addr add 192.0.2.100/24 dev eth0
$ip addr add 10.0.1.254/24 dev to-a; $ip -n a addr add 10.0.1.1/24 dev eth0; $ip -n a route add default via 10.0.1.254
$ip addr add 10.0.2.254/24 dev to-b; $ip -n b addr add 10.0.2.1/24 dev eth0; $ip -n b route add default via 10.0.2.254
echo 1 > /proc/sys/net/ipv4/ip_forward
serve a; serve b

# Another program's service stays.
ipvsadm -A -t 192.0.2.9:80 -s rr
other="-A -t 192.0.2.9:80 -s rr"

config() {
    cat > c.lua <<LUA
service "192.0.2.1:80" {
  plane = "ipvs",
  address_on = "to-client",
  $1
}
LUA
}

config '"10.0.1.1:80", "10.0.2.1:80", { "10.0.3.1:80", weight = 0 }'
start
expect "the services and servers are in the table" "$other" "-A -t 192.0.2.1:80 -s rr" \
    "-a -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 1" "-a -t 192.0.2.1:80 -r 10.0.2.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.0.3.1:80 -m -w 0"
$ip addr show dev to-client | grep -q "192.0.2.1/32" && echo "ok: the interface has the address" || fail address
same "traffic is balanced" "$(ask client 192.0.2.1:80 10)" "a=5 b=5 failed=0"

ipvsadm -e -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 50
ipvsadm -d -t 192.0.2.1:80 -r 10.0.2.1:80
expect_log "drift is reported" 'ipvs_drift.*10.0.1.1:80 of TCP 192.0.2.1:80: found weight 50'
expect "drift is undone" "$other" "-A -t 192.0.2.1:80 -s rr" \
    "-a -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 1" "-a -t 192.0.2.1:80 -r 10.0.2.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.0.3.1:80 -m -w 0"

stop -9
[ "$(ipvsadm -Sn | grep -c .)" = 5 ] && echo "ok: the table outlives the process" || fail "kill -9"
# Closed connections stay in the table for two minutes; the drain is shorter.
config '{ "10.0.1.1:80", weight = 3 }, scheduler = "sed", persistence = "5min", drain_timeout = "2s"'
start
expect "a successor removes what was left, after it drained" "$other" "-A -t 192.0.2.1:80 -s sed -p 300" \
    "-a -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 3"

printf 'service "192.0.2.1:80" { plane = "ipvs", "10.0.1.1:80", scheduler = "wllc" }' > c.lua
kill -HUP $pid
expect_log "a wrong scheduler is refused with its line" 'c.lua:1: .*did you mean \\*"wlc'
printf 'service "192.0.2.1:80" { plane = "ipvs", "10.0.1.1:80"' > c.lua
kill -HUP $pid
expect_log "a missing brace is refused with its line" 'c.lua:1: .*}'
expect "a refused configuration changes nothing" "$other" "-A -t 192.0.2.1:80 -s sed -p 300" \
    "-a -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 3"

config '"10.0.1.1:80", { "10.0.2.1:80", tier = 2 }, check = check.tcp { every = "500ms", fall = 1, rise = 1 }, on_down = "close"'
kill -HUP $pid
expect "the second tier waits" "$other" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 1"
$ip -n a link set eth0 down
expect "a dead server leaves and the next tier comes" "$other" "-A -t 192.0.2.1:80 -s rr" \
    "-a -t 192.0.2.1:80 -r 10.0.2.1:80 -m -w 1"
$ip -n b link set eth0 down
expect "the service stays without servers" "$other" "-A -t 192.0.2.1:80 -s rr"
address_is_removed() { ! $ip addr show dev to-client | grep -q "192.0.2.1/32"; }
eventually "the address is removed" address_is_removed

stop -TERM
expect "nothing is flushed at the end" "$other" "-A -t 192.0.2.1:80 -s rr"
end
