#!/bin/sh
# A client that uses a source port again, while its server drains. Runs in the VM of `cargo xtask guest`; $EVENER is the
# program.
. ./lib.sh
$ip addr add 192.0.2.1/32 dev lo
space client to-client
$ip addr add 10.1.0.1/24 dev to-client
$ip -n client addr add 10.1.0.2/24 dev eth0; $ip -n client route add default via 10.1.0.1
number=1
for name in a b; do
    space $name to-$name
    $ip addr add 10.2.$number.254/24 dev to-$name
    $ip -n $name addr add 10.2.$number.1/24 dev eth0; $ip -n $name route add default via 10.2.$number.254
    serve $name
    number=$((number + 1))
done
echo 1 > /proc/sys/net/ipv4/ip_forward
vs=/proc/sys/net/ipv4/vs

# Writes a configuration with servers.
config() { echo "service \"192.0.2.1:80\" { plane = \"ipvs\", $1, drain_timeout = \"1h\" }" > c.lua; }

echo 0 > $vs/conn_reuse_mode; echo 0 > $vs/expire_nodest_conn; echo 0 > $vs/conntrack
config '"10.2.1.1:80", { "10.2.2.1:80", weight = 0 }'
start
expect "the server a takes clients" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.2.1.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.2.2.1:80 -m -w 0"
expect_log "conn_reuse_mode is reported" "ipvs_setting.*net.ipv4.vs.conn_reuse_mode is 0.*set it to 1"
expect_log "expire_nodest_conn is reported" "ipvs_setting.*net.ipv4.vs.expire_nodest_conn is 0.*set it to 1"
same "a client of the server a" "$(ask client 192.0.2.1:80 1 0 5555)" "a=1 failed=0"
config '"10.2.2.1:80"'
kill -HUP $pid
expect "the server a drains" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.2.1.1:80 -m -w 0" \
    "-a -t 192.0.2.1:80 -r 10.2.2.1:80 -m -w 1"
same "with conn_reuse_mode = 0 the port keeps the server that drains" "$(ask client 192.0.2.1:80 1 0 5555)" "a=1 failed=0"
same "another port gets another server" "$(ask client 192.0.2.1:80 1 0 5556)" "b=1 failed=0"
echo 1 > $vs/conn_reuse_mode
same "with conn_reuse_mode = 1 the port gets another server" "$(ask client 192.0.2.1:80 1 0 5555)" "b=1 failed=0"
same "also the next time" "$(ask client 192.0.2.1:80 1 0 5555)" "b=1 failed=0"
stop -TERM
echo 1 > $vs/expire_nodest_conn
: > $log
start
expect_log "the program is back" ' started '
sleep 1
same "with the advised values nothing is reported" "$(grep -c ipvs_setting $log)" "0"
stop -TERM
end
