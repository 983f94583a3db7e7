#!/bin/sh
# The program with a kernel that has IPVS. Runs in the VM of `cargo xtask guest`; $EVENER is the program.
set -u
modprobe ip_vs
failed=0
# The shell would run the program of busybox.
ip=/usr/sbin/ip

fail() {
    echo "FAILED: $*"
    echo "--- ipvsadm -Sn"; ipvsadm -Sn; echo "--- log"; tail -n 40 log
    failed=1
}

# Waits until the saved table is as expected: `expect NAME LINES`.
expect() {
    name=$1; shift
    want=$(printf '%s\n' "$@" | sort)
    tries=0
    while :; do
        have=$(ipvsadm -Sn | sed 's/ *$//' | sort)
        [ "$have" = "$want" ] && { echo "ok: $name"; return; }
        tries=$((tries + 1))
        [ $tries -ge 300 ] && { fail "$name: got:"; echo "$have"; return; }
        sleep 0.1
    done
}

# Waits until the log has a text: `expect_log NAME TEXT`.
expect_log() {
    tries=0
    until grep -q -e "$2" log; do
        tries=$((tries + 1))
        [ $tries -ge 300 ] && { fail "$1: no '$2'"; return; }
        sleep 0.1
    done
    echo "ok: $1"
}

start() {
    $EVENER run /job/c.lua >>log 2>&1 &
    pid=$!
}

# The balancer has 10.0.0.254 towards the servers and 192.0.2.254 towards the client.
for name in a b; do
    $ip netns add "$name"
    $ip link add "to-$name" type veth peer name eth0 netns "$name"
    $ip link set "to-$name" up
    $ip -n "$name" link set lo up
    $ip -n "$name" link set eth0 up
done
$ip netns add client
$ip link add to-client type veth peer name eth0 netns client
$ip link set to-client up
$ip addr add 192.0.2.254/24 dev to-client
$ip -n client link set lo up; $ip -n client link set eth0 up
$ip -n client addr add 192.0.2.100/24 dev eth0
$ip addr add 10.0.1.254/24 dev to-a; $ip -n a addr add 10.0.1.1/24 dev eth0; $ip -n a route add default via 10.0.1.254
$ip addr add 10.0.2.254/24 dev to-b; $ip -n b addr add 10.0.2.1/24 dev eth0; $ip -n b route add default via 10.0.2.254
echo 1 > /proc/sys/net/ipv4/ip_forward
cat > serve.sh <<'SERVE'
while :; do echo "$1" | nc -l -p 80 >/dev/null 2>&1; done
SERVE
$ip netns exec a sh serve.sh a & a=$!
$ip netns exec b sh serve.sh b & b=$!

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
seen=""
for n in 1 2 3 4 5 6; do
    seen="$seen$(echo x | $ip netns exec client nc -w 5 192.0.2.1 80 2>/dev/null)"
done
case $seen in
    *a*b*|*b*a*) echo "ok: traffic is balanced ($seen)" ;;
    *) fail "traffic: '$seen'" ;;
esac

ipvsadm -e -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 50
ipvsadm -d -t 192.0.2.1:80 -r 10.0.2.1:80
expect_log "drift is reported" 'ipvs_drift.*10.0.1.1:80 of TCP 192.0.2.1:80: found weight 50'
expect "drift is undone" "$other" "-A -t 192.0.2.1:80 -s rr" \
    "-a -t 192.0.2.1:80 -r 10.0.1.1:80 -m -w 1" "-a -t 192.0.2.1:80 -r 10.0.2.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.0.3.1:80 -m -w 0"

kill -9 $pid; wait $pid 2>/dev/null
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
tries=0
while $ip addr show dev to-client | grep -q "192.0.2.1/32"; do
    tries=$((tries + 1)); [ $tries -ge 100 ] && break; sleep 0.1
done
[ $tries -lt 100 ] && echo "ok: the address is removed" || fail "the address stays"

kill $pid; wait $pid 2>/dev/null
expect "nothing is flushed at the end" "$other" "-A -t 192.0.2.1:80 -s rr"
kill $a $b 2>/dev/null
[ $failed = 0 ] && echo "program: ok"
exit $failed
